# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host in trouble: what kvmsup does then is refuse with the reason, or do with less and say so; nothing half.

Elsewhere: no room for an image (test_disks), no memory for pages (test_hugepages), the oldest systemd, QEMU and
kernel (test_debian12), no /dev/kvm (test_boot).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host import guests
from tests.lab.host import Host, Lab

# /run as small as what is in it, and then filled to the last page, for whoever is root, too.
FILL = """
mount -o remount,size=$(( $(df --output=used /run | tail -1) + 64 ))k /run
dd if=/dev/zero of=/run/filler bs=4k 2>/dev/null
[ $(df --output=avail /run | tail -1) = 0 ]
"""


@pytest.fixture(scope="module")
def troubled(host: Host) -> Host:
    guests.configure(host, {"tiny": guests.TINY, "shared": guests.SHARED, "merged": guests.SHARED + "ksm = true\n"})
    guests.keep_supervisor(host)
    return host


@contextmanager
def full_run(host: Host) -> Iterator[None]:
    host.run(FILL)
    try:
        yield
    finally:
        host.run("rm -f /run/filler*; mount -o remount,size=20% /run")


def failed(host: Host, name: str, reason: str) -> None:
    """The guest's last start was refused for that reason, without a traceback, and nothing of it is there."""
    said = guests.said(host, name)
    assert reason in said
    assert "Traceback" not in said
    assert guests.state(host, f"kvm@{name}") in ("inactive", "failed")
    assert host.run("pgrep -c qemu-system", check=False).stdout.strip() == "0"


def test_a_full_run(troubled: Host) -> None:
    """No start, with the reason; whoever ends gives back all the same, and what a killed write has left goes."""
    troubled.run("touch /run/kvmsup/claims/web.env.4711.part /run/kvmsup/running/web.json.4711.part")
    guests.start(troubled, "tiny")
    assert troubled.run("find /run/kvmsup -name '*.part'").stdout == ""
    assert sum(guests.pages(troubled)) == 32
    with full_run(troubled):
        troubled.run("systemctl kill -s KILL kvm@tiny")
        troubled.wait_for("[ $(systemctl show -P ActiveState kvm-setup@tiny) != active ]", timeout=60)
        troubled.wait_for("[ ! -e /run/kvmsup/claims/tiny.env ]", timeout=60)
        assert guests.pages(troubled) == (0, 0)
        troubled.run("dd if=/dev/zero of=/run/filler.more bs=4k", check=False)  # what the guest had
        assert guests.start(troubled, "tiny", check=False).rc == 1
        failed(troubled, "tiny", "cannot write: No space left on device")
        assert guests.pages(troubled) == (0, 0)
    troubled.run("systemctl reset-failed 'kvm*'", check=False)
    guests.start(troubled, "tiny")
    guests.kill(troubled, "tiny")
    assert guests.leftovers(troubled) == []


def test_an_etc_that_cannot_be_written(troubled: Host) -> None:
    """Guests need none of it; who writes there is told."""
    troubled.run("mount --bind /etc /etc && mount -o remount,ro,bind /etc")
    try:
        troubled.run("systemctl daemon-reload")
        guests.start(troubled, "shared")
        guests.kill(troubled, "shared")
        told = troubled.run("truncate -s 1M /srv/x.img; kvmsup new other --image /srv/x.img", check=False)
        assert told.rc == 1
        assert "Read-only file system" in told.stderr
        assert "Traceback" not in told.stderr
    finally:
        troubled.run("umount /etc")
    assert guests.leftovers(troubled) == []


def test_a_clock_that_jumps(troubled: Host) -> None:
    """While a guest starts, and while it runs: all waiting is by a clock that nobody sets."""
    troubled.run("systemctl start --no-block kvm@tiny; date -s '+2 days'")
    troubled.wait_for("[ $(systemctl show -P ActiveState kvm@tiny) = active ]", timeout=120)
    troubled.run("date -s '-9 days'; systemctl reload kvm@tiny", timeout=120)
    assert guests.kvmsup(troubled, "status tiny")["drift"] is False
    guests.kill(troubled, "tiny")
    troubled.set_clock()
    assert guests.leftovers(troubled) == []


def test_a_kernel_without_ksm(troubled: Host) -> None:
    """The guest runs, and that its consent is of no use is told once."""
    troubled.run("mkdir -p /run/empty && mount --bind /run/empty /sys/kernel/mm/ksm")
    try:
        # It has a view of its own of what is mounted.
        troubled.run("systemctl restart kvmsup", timeout=60)
        guests.start(troubled, "merged")
        told = "journalctl -b -u kvmsup -o cat | grep -c 'no KSM: ksm = true of merged is of no use'"
        troubled.wait_for(f"[ $({told}) = 1 ]", timeout=60)
        guests.kill(troubled, "merged")
    finally:
        troubled.run("umount /sys/kernel/mm/ksm; systemctl restart kvmsup", timeout=60)
    assert guests.leftovers(troubled) == []


def test_control_groups_without_cpuset(still_lab: Lab, deb: Path) -> None:
    """Guests of one kind run; one of the other kind would not be kept apart from them, and is refused."""
    with still_lab.boot("cgroup_disable=cpuset") as host:
        host.install(deb)
        assert "cpuset" not in host.read("/sys/fs/cgroup/cgroup.controllers")
        guests.configure(host, {"tiny": guests.TINY, "shared": guests.SHARED})
        guests.start(host, "tiny")
        assert guests.start(host, "shared", check=False).rc == 1
        assert "without the cpuset controller shared guests cannot be kept off" in guests.said(host, "shared")
        assert guests.state(host, "kvm@tiny") == "active"
        guests.kill(host, "tiny")
        guests.start(host, "shared")
        guests.kill(host, "shared")
        assert guests.leftovers(host) == []
