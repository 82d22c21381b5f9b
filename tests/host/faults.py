# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at named steps of one guest, `tiny`, on a real host."""

from __future__ import annotations

from kvmsup.steps import STEPS
from tests.host import guests
from tests.lab.host import Host

# Guest tiny has neither UEFI nor a seed, and nobody reloads it: faults there are injected by tests of their own.
ELSEWHERE = [step for step in STEPS if step.startswith(("apply.", "create.nvram", "create.seed"))]
STARTING = [step for step in STEPS if step.startswith(("setup.", "create.", "attach.")) and step not in ELSEWHERE]
STOPPING = [step for step in STEPS if step.startswith("stop.")]
RELEASING = [step for step in STEPS if step.startswith("release.")]
# So that it comes to the steps of plugging, too.
NETS = '[net.lan]\nbridge = "br0"\n[net.direct]\nmacvtap = "v1"\n'
# So that it comes to the steps of creating.
DISK = '[disk.own]\npath = "own.img"\nformat = "raw"\nsize = "1M"\n'
UNITS = ("kvm@tiny", "kvm-setup@tiny")


def cases(steps: list[str]) -> list[tuple[str, str]]:
    """A kill at each of `steps` and an error at every fourth: a start that fails costs seconds. The soak draws all."""
    return [(step, "kill") for step in steps] + [(step, "error") for step in steps[::4]]


def inject(host: Host, fault: str) -> None:
    """Arm `fault` (STEP:HOW) in both units of the guest; "" disarms."""
    host.put(f"KVMSUP_FAULT={fault}\n".encode() if fault else b"", "/run/fault.env")
    host.run("systemctl reset-failed 'kvm*'", check=False)


def prepare(host: Host) -> Host:
    """Guests whose units read the fault anew at each command, and which are not waited for at stop."""
    for unit in UNITS:
        host.run(f"mkdir -p /run/systemd/system/{unit}.service.d")
        lines = "[Service]\nEnvironmentFile=-/run/fault.env\nTimeoutStopSec=8\n"
        host.put(lines.encode(), f"/run/systemd/system/{unit}.service.d/fault.conf")
    host.run("ip link add br0 type bridge; ip link add v0 type veth peer name v1")
    guests.configure(host, {"tiny": guests.ISOLATED + NETS + DISK, "other": guests.TINY})
    guests.keep_supervisor(host)
    return host


def the_next_start_works(host: Host) -> None:
    """Without a fault, the guest comes up on its CPUs, and leaves nothing."""
    inject(host, "")
    guests.start(host, "tiny")
    assert guests.allowed(host, guests.pid(host, "tiny"))["CPU 1/KVM"] == "3"
    guests.kill(host, "tiny")
    assert guests.leftovers(host) == []
