# SPDX-License-Identifier: LGPL-2.1-or-later
"""Invariant 1: no guest instruction runs before every pin has been read back."""

from __future__ import annotations

from tests.host import guests
from tests.lab.host import Host

TRACE = "/sys/kernel/tracing"


def test_no_guest_instruction_runs_before_the_pins_are_read_back(host: Host) -> None:
    """attach is halted between reading the pins back and `cont`; the kernel has seen no kvm_entry until it goes on."""
    guests.configure(host, {"tiny": guests.TINY})
    host.run("mkdir -p /run/systemd/system/kvm@tiny.service.d")
    host.put(
        b"[Service]\nEnvironment=KVMSUP_FAULT=attach.run:stop\n", "/run/systemd/system/kvm@tiny.service.d/fault.conf"
    )
    host.run(f"systemctl daemon-reload; echo 1 > {TRACE}/events/kvm/kvm_entry/enable; echo > {TRACE}/trace")
    host.run("systemctl start --no-block kvm@tiny")
    attach = "pgrep -f '[k]vmsup-guest attach tiny'"
    host.wait_for(f"grep -q '^State:.T' /proc/$({attach})/status", timeout=120)

    process = guests.pid(host, "tiny")
    threads = guests.allowed(host, process)
    assert (threads.pop("CPU 0/KVM"), threads.pop("CPU 1/KVM")) == ("2", "3")
    assert set(threads.values()) == {"0-1"}
    host.run("sleep 2")
    assert entries(host) == 0
    assert guests.state(host, "kvm@tiny") == "activating"

    host.run(f"kill -CONT $({attach})")
    host.wait_for("[ $(systemctl show -P ActiveState kvm@tiny) = active ]", timeout=60)
    host.wait_for(f"grep -q kvm_entry {TRACE}/trace", timeout=30)
    cpus = host.run(f"grep kvm_entry {TRACE}/trace | grep -o '\\[[0-9]*\\]' | sort -u").stdout.split()
    assert set(cpus) <= {"[002]", "[003]"}
    host.run(f"echo 0 > {TRACE}/events/kvm/kvm_entry/enable; rm /run/systemd/system/kvm@tiny.service.d/fault.conf")
    guests.kill(host, "tiny")


def entries(host: Host) -> int:
    return int(host.run(f"grep -c kvm_entry {TRACE}/trace", check=False).stdout)
