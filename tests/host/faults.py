# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at named steps of one guest, `tiny`, on a real host."""

from __future__ import annotations

from kvmsup.steps import STEPS
from tests.host import guests
from tests.lab.host import Host

STARTING = [step for step in STEPS if step.startswith(("setup.", "attach."))]
STOPPING = [step for step in STEPS if step.startswith("stop.")]
RELEASING = [step for step in STEPS if step.startswith("release.")]
UNITS = ("kvm@tiny", "kvm-setup@tiny")


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
    guests.configure(host, {"tiny": guests.TINY, "other": guests.TINY})
    guests.keep_supervisor(host)
    return host


def the_next_start_works(host: Host) -> None:
    """Without a fault, the guest comes up on its CPUs, and leaves nothing."""
    inject(host, "")
    guests.start(host, "tiny")
    assert guests.allowed(host, guests.pid(host, "tiny"))["CPU 1/KVM"] == "3"
    guests.kill(host, "tiny")
    assert guests.leftovers(host) == []
