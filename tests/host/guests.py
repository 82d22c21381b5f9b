# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests on real hosts do with guests, and the facts they read back from the kernel."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import schema
from tests.lab import still
from tests.lab.errors import CommandTimeout, Result
from tests.lab.host import Host

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-B0-2]|[78=>])")
ETC = Path(__file__).parents[2] / "etc"
Entry = dict[str, Any]
# What the demo guest says last when it has come up.
READY = "demo: ready"
PAGES = "/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"

# For everything that needs a QEMU but no guest that answers.
TINY = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[cpu]
vcpus = 2
[placement]
cpus = "dedicated"
[memory]
size = "64M"
hugepages = "2M"
"""
# So that the host keeps off its CPUs, too.
ISOLATED = TINY.replace('"dedicated"', '"dedicated"\nisolate = true')
SHARED = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[memory]
size = "64M"
"""
# Looks for something to boot.
FIRMWARE = """
[machine]
type = "pc-q35-7.2"
[memory]
size = "64M"
"""
# The demo guest's Linux, of which several run at once.
LINUX = """
[machine]
type = "pc-q35-7.2"
kernel = "/vmlinuz"
initrd = "/var/lib/kvmsup-demo/initramfs"
cmdline = "console=ttyS0 quiet panic=-1"
[cpu]
vcpus = 2
[memory]
size = "192M"
"""


def configure(host: Host, texts: Mapping[str, str]) -> None:
    """Write guests' files and load them, without the path unit's reloads in between."""
    host.run("systemctl stop kvmsup-reload.path")
    for name, text in texts.items():
        host.put(text.encode(), f"/etc/kvmsup/{name}.toml")
    host.run("systemctl daemon-reload")


def keep_supervisor(host: Host) -> None:
    """Keep the supervisor up between guests, where its coming and going is not what is tested: each costs seconds."""
    unit = "[Unit]\nWants=kvmsup.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"
    host.put(unit.encode(), "/run/systemd/system/keep-supervisor.service")
    host.run("systemctl daemon-reload; systemctl start keep-supervisor", timeout=120)


def be_patient_with(host: Host, unit: str) -> None:
    """Ten minutes for `unit` to start: that many at once on emulated CPUs are slower than any real host."""
    directory = f"/run/systemd/system/{unit}.d"
    host.run(f"mkdir -p {directory}")
    host.put(b"[Service]\nTimeoutStartSec=600\n", f"{directory}/patience.conf")
    host.run("systemctl daemon-reload")


def install_demo(host: Host) -> None:
    """Build the demo guest's initramfs on the host, and configure it."""
    host.run("mkdir -p /root/demo")
    for file in sorted((ETC / "demo").iterdir()):
        host.put(file, f"/root/demo/{file.name}", mode=file.stat().st_mode & 0o777)
    host.run("/root/demo/build-initramfs /var/lib/kvmsup-demo/initramfs", timeout=120)
    configure(host, {"demo": (ETC / "demo" / "demo.toml").read_text()})


def booted(host: Host, name: str, times: int = 1) -> None:
    """Wait until a guest with the demo's Linux has come up that many times since its service was started."""
    invocation = f"_SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID kvm@{name})"
    host.wait_for_line(invocation, READY, times, timeout=400)


def start(host: Host, name: str, *, check: bool = True) -> Result:
    return host.run(f"systemctl start kvm@{name}", check=check, timeout=240)


def stop(host: Host, name: str) -> None:
    """A clean stop: the guest must honour the power button."""
    host.run(f"systemctl stop kvm@{name}", timeout=240)
    released(host, name)


def kill(host: Host, name: str) -> None:
    """End a guest that need not end cleanly, and wait until everything is given back."""
    host.run(
        f"systemctl kill -s KILL kvm@{name}; systemctl stop kvm@{name}; systemctl reset-failed 'kvm*'", check=False
    )
    released(host, name)


def clear(host: Host) -> None:
    """End every guest, however it is, with its configuration."""
    host.run("systemctl kill -s KILL 'kvm@*'; systemctl stop 'kvm@*'; systemctl reset-failed 'kvm*'", check=False)
    host.wait_for('[ -z "$(ls /run/kvmsup/claims)" ]')
    host.run("rm -f /etc/kvmsup/*.toml; systemctl daemon-reload")


def released(host: Host, name: str) -> None:
    """Wait until the guest's setup unit is down: it stops a moment after its guest."""
    down = f"systemctl show -P ActiveState kvm-setup@{name} | grep -qE '^(inactive|failed)$'"
    host.wait_for(f"{down} && [ ! -e /run/kvmsup/claims/{name}.env ]", timeout=60)


def show(host: Host, unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit as systemd has them."""
    text = host.run(["systemctl", "show", "-p", ",".join(names), unit]).stdout
    return dict(line.split("=", 1) for line in text.splitlines())


def state(host: Host, unit: str) -> str:
    return show(host, unit, "ActiveState")["ActiveState"]


def pid(host: Host, name: str) -> int:
    return int(show(host, f"kvm@{name}", "MainPID")["MainPID"])


def said(host: Host, name: str) -> str:
    """What the journal shows under the guest's unit."""
    return host.run(f"journalctl --sync; journalctl --boot --no-pager --output=cat --unit kvm@{name}").stdout


def entries(host: Host, matches: str) -> list[Entry]:
    """The journal since the boot, oldest first. A field that an entry has several times is a list, not a text."""
    text = host.run(f"journalctl --sync; journalctl --boot --all --output=json {matches}").stdout
    found = [json.loads(line) for line in text.splitlines()]
    for entry in found:
        if isinstance(entry["MESSAGE"], list):  # with control characters, as a console has them
            entry["MESSAGE"] = bytes(entry["MESSAGE"]).decode(errors="replace")
    return found


def claim(host: Host, name: str) -> dict[str, str]:
    text = host.read(f"/run/kvmsup/claims/{name}.env")
    return dict(line.removeprefix("KVMSUP_").split("=", 1) for line in text.splitlines())


def pages(host: Host) -> tuple[int, ...]:
    """The pools of 2M pages by node."""
    return tuple(int(host.read(PAGES.format(node=node))) for node in (0, 1))


def allowed(host: Host, process: int) -> dict[str, str]:
    """Cpus_allowed_list of each thread, by its name, as the kernel tells it."""
    list_of = "sed -n 's/^Cpus_allowed_list:.//p' $t/status"
    script = f'for t in /proc/{process}/task/*; do echo "$(cat $t/comm)=$({list_of})"; done'
    lines = host.run(script).stdout.splitlines()
    return dict(line.rsplit("=", 1) for line in lines)


def inside(host: Host, name: str, command: str, timeout: float = 60.0) -> str:
    """What a command of one line prints in the guest, run by root's shell on hvc0, which is logged in by itself.

    Raises CommandTimeout with what the console showed.
    """
    # The marks are not in what the terminal echoes, as the shell in the guest has yet to join their halves.
    line = f"clear; echo BEG''IN; {command}; echo EN''D"
    shown = f"/run/inside.{name}"
    wait = f"for i in $(seq {round(timeout * 2)}); do grep -q '^END' {shown} && break; sleep 0.5; done"
    type_in(host, name, line, wait, shown, timeout)
    text = _ESCAPES.sub("", host.read(shown)).replace("\r", "")
    if "\nEND" not in text:
        raise CommandTimeout(f"in {name}: {command}", Result(-1, text, ""), timeout)
    return text.partition("BEGIN\n")[2].partition("\nEND")[0].strip("\n")


def type_in(
    host: Host, name: str, line: str, wait: str = "sleep 2", shown: str = "/dev/null", timeout: float = 60.0
) -> None:
    """Type `line` at the shell on the guest's hvc0, and leave when the host's command `wait` ends."""
    typing = f"echo; sleep 1; printf '%s\\n' {shlex.quote(line)}; {wait}; printf '\\035'"
    host.run(f"({typing}) | kvmsup console {name} >{shown} 2>&1", timeout=timeout + 30)


def kvmsup(host: Host, arguments: str, *, check: bool = True) -> Any:
    """What a verb prints as JSON, which must be as its schema says."""
    found = json.loads(host.run(f"kvmsup {arguments} --json", check=check).stdout)
    schema.hold(arguments.split()[0], found)
    return found


def leftovers(host: Host) -> list[str]:
    """Everything that guests may leave behind on a host where none runs."""
    script = """
        ls -d /run/kvmsup/claims/* /run/kvmsup/guests/* /run/kvmsup/*.found /run/kvmsup/isolated/* 2>/dev/null
        pgrep -a qemu-system
        grep -H '^kvm@' /sys/class/net/*/ifalias
        ls -d /dev/tap[0-9]* 2>/dev/null
        systemctl list-units --no-legend --plain --state=active,activating,deactivating 'kvm@*' 'kvm-setup@*'
        find /sys/fs/cgroup/kvm.slice -name 'kvm@*' 2>/dev/null
        find /run/systemd/system.control -type f 2>/dev/null
    """
    return host.run(script, check=False).stdout.splitlines()
