# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host itself: a reboot, and one without KVM."""

from __future__ import annotations

import json

import pytest

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


def shutdowns(host: Host, names: tuple[str, ...]) -> dict[str, list[int]]:
    """When systemd began to stop each guest, and when it had, in the boot before this one; in microseconds."""
    units = " ".join(f"UNIT=kvm@{name}.service" for name in names)
    lines = host.run(f"journalctl -b -1 -o json _PID=1 {units} --grep '^Stop'").stdout.splitlines()
    found: dict[str, list[int]] = {name: [] for name in names}
    for entry in map(json.loads, lines):
        name = entry["UNIT"].removeprefix("kvm@").removesuffix(".service")
        found[name].append(int(entry["__MONOTONIC_TIMESTAMP"]))
    return found


@pytest.mark.linux_guests
def test_guests_go_down_and_come_up_with_the_host(fresh_host: Host) -> None:
    """Down all at once, but for those that are ordered, each by its power button; up as they are enabled."""
    guests.install_demo(fresh_host)
    guests.keep_supervisor(fresh_host)
    texts = dict.fromkeys(("db", "app", "lone"), guests.LINUX)
    fresh_host.run("mkdir -p /run/systemd/system/kvm@app.service.d")
    fresh_host.put(b"[Unit]\nAfter=kvm@db.service\n", "/run/systemd/system/kvm@app.service.d/order.conf")
    guests.configure(fresh_host, {"tiny": guests.TINY, **texts})
    fresh_host.run("systemctl enable kvm@tiny; systemctl start kvm@db kvm@app kvm@lone", timeout=240)
    for name in texts:
        guests.booted(fresh_host, name)
    boot = fresh_host.read("/proc/sys/kernel/random/boot_id")
    fresh_host.reboot(timeout=400)
    stops = shutdowns(fresh_host, tuple(texts))
    assert stops["app"][1] <= stops["db"][0], stops
    assert stops["lone"][0] < stops["app"][1] and stops["app"][0] < stops["lone"][1], stops
    for name in texts:
        said = fresh_host.run(f"journalctl -b -1 -o cat -u kvm@{name}").stdout
        assert "the guest has shut down" in said.splitlines(), said
    assert fresh_host.read("/proc/sys/kernel/random/boot_id") != boot
    fresh_host.wait_for("[ $(systemctl show -P ActiveState kvm@tiny) = active ]", timeout=120)
    assert guests.pages(fresh_host) == (32, 0)
    # Its pages were taken before anything else of the host could scatter its memory.
    entered = "ActiveEnterTimestampMonotonic"
    when = [int(guests.show(fresh_host, unit, entered)[entered]) for unit in ("kvm-setup@tiny", "basic.target")]
    assert 0 < when[0] < when[1]
    assert guests.allowed(fresh_host, guests.pid(fresh_host, "tiny"))["CPU 0/KVM"] == "2"
    guests.kill(fresh_host, "tiny")
    assert guests.leftovers(fresh_host) == []
