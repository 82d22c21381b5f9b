# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that can change while it runs, and how the tests edit, reload and ask it."""

from __future__ import annotations

import json
from typing import Any

from tests.host import guests
from tests.lab import still
from tests.lab.errors import Result
from tests.lab.host import Host

# Shared, so that it can have more vCPUs than the host has CPUs.
ELASTIC = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[cpu]
vcpus = 2
maxcpus = 64
[placement]
emulator = "0"
[memory]
size = "64M"
[memory.balloon]
min = "64M"
"""
ASK = """
import json, socket, sys
talk = socket.socket(socket.AF_UNIX)
talk.settimeout(20)
talk.connect("/run/kvmsup/guests/%s/admin.qmp")
stream = talk.makefile("rw")
stream.readline()
for command in ("qmp_capabilities", sys.argv[1]):
    stream.write(json.dumps({"execute": command}) + "\\n")
    stream.flush()
    while "return" not in (answer := json.loads(stream.readline())):
        pass
print(json.dumps(answer["return"]))
"""


def ask(host: Host, name: str, command: str) -> Any:
    """What the guest's QEMU answers on the administrator's monitor."""
    return json.loads(host.run(["python3", "-c", ASK % name, command]).stdout)


def reload(host: Host, name: str, *, check: bool = True) -> Result:
    return host.run(f"systemctl reload kvm@{name}", check=check, timeout=120)


def edit(host: Host, name: str, *edits: tuple[str, str]) -> None:
    """Edit the file without anything being loaded."""
    text = host.read(f"/etc/kvmsup/{name}.toml")
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    host.put(text.encode(), f"/etc/kvmsup/{name}.toml")


def vcpus(host: Host, name: str) -> dict[str, str]:
    """Cpus_allowed_list of each vCPU that is there."""
    found = guests.allowed(host, guests.pid(host, name))
    return {thread: cpus for thread, cpus in found.items() if thread.startswith("CPU ")}
