# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host itself: a reboot, and one without KVM."""

from __future__ import annotations

from tests.host import guests
from tests.lab.host import Host


def test_without_dev_kvm_a_start_says_so_in_one_sentence(host: Host) -> None:
    guests.configure(host, {"tiny": guests.TINY})
    host.run("mv /dev/kvm /dev/kvm.away")
    assert guests.start(host, "tiny", check=False).rc == 1
    guests.released(host, "tiny")
    sentence = (
        "this host has no /dev/kvm, although its CPU has SVM, so no guest can run with accel = kvm\n"
        '  hint: modprobe kvm_amd; if that fails, enable SVM in the firmware; accel = "tcg" emulates\n'
    )
    assert sentence in guests.said(host, "tiny")
    host.run("mv /dev/kvm.away /dev/kvm")
    assert guests.leftovers(host) == []


def test_an_enabled_guest_comes_up_with_the_host(host: Host) -> None:
    guests.configure(host, {"tiny": guests.TINY})
    host.run("systemctl enable kvm@tiny")
    boot = host.read("/proc/sys/kernel/random/boot_id")
    host.reboot(timeout=400)
    assert host.read("/proc/sys/kernel/random/boot_id") != boot
    host.wait_for("[ $(systemctl show -P ActiveState kvm@tiny) = active ]", timeout=120)
    assert guests.pages(host) == (32, 0)
    # Its pages were taken before anything else of the host could scatter its memory.
    entered = "ActiveEnterTimestampMonotonic"
    when = [int(guests.show(host, unit, entered)[entered]) for unit in ("kvm-setup@tiny", "basic.target")]
    assert 0 < when[0] < when[1]
    assert guests.allowed(host, guests.pid(host, "tiny"))["CPU 0/KVM"] == "2"
    guests.kill(host, "tiny")
    assert guests.leftovers(host) == []
