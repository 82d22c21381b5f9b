# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every way a guest can end: what it held is given back, and what is kept is kept on purpose."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

UNITS = "/run/systemd/system"
DROPIN = f"{UNITS}/kvm@tiny.service.d"


@pytest.fixture(scope="module", autouse=True)
def prepared(host: Host) -> None:
    guests.keep_supervisor(host)


@pytest.fixture(autouse=True)
def tiny(host: Host) -> None:
    guests.configure(host, {"tiny": guests.TINY})


def test_killed_qemu_is_a_failure_and_everything_is_given_back(host: Host) -> None:
    guests.start(host, "tiny")
    assert guests.pages(host) == (32, 0)
    host.run(f"kill -9 {guests.pid(host, 'tiny')}")
    host.wait_for("[ $(systemctl show -P ActiveState kvm@tiny) = failed ]")
    assert guests.show(host, "kvm@tiny", "Result") == {"Result": "signal"}
    guests.released(host, "tiny")
    assert guests.pages(host) == (0, 0)
    assert guests.leftovers(host) == []
    host.run("systemctl reset-failed kvm@tiny")


def test_restart_keeps_the_claim(host: Host) -> None:
    """The claim's file is not even rewritten, and the pool never shrinks in between."""
    guests.start(host, "tiny")
    before = (guests.claim(host, "tiny"), host.run("stat -c '%i %Y' /run/kvmsup/claims/tiny.env").stdout)
    first = guests.pid(host, "tiny")
    watch = f"while sleep 0.05; do cat {guests.PAGES.format(node=0)}; done > /tmp/pool & echo $! > /tmp/watch"
    host.run(f"{{ {watch}; }} >/dev/null 2>&1")
    impatient(host)
    host.run("systemctl restart kvm@tiny", timeout=120)
    host.run("kill $(cat /tmp/watch)")
    assert guests.pid(host, "tiny") != first
    assert (guests.claim(host, "tiny"), host.run("stat -c '%i %Y' /run/kvmsup/claims/tiny.env").stdout) == before
    assert set(host.read("/tmp/pool").split()) == {"32"}
    guests.kill(host, "tiny")
    assert guests.pages(host) == (0, 0)


def test_automatic_restart_keeps_the_claim(host: Host) -> None:
    impatient(host, "Restart=on-failure")
    guests.start(host, "tiny")
    before = host.run("stat -c '%i %Y' /run/kvmsup/claims/tiny.env").stdout
    first = guests.pid(host, "tiny")
    host.run(f"kill -9 {first}")
    host.wait_for(f"p=$(systemctl show -P MainPID kvm@tiny); [ $p != {first} ] && [ $p != 0 ]", timeout=60)
    host.wait_for("[ $(systemctl show -P ActiveState kvm@tiny) = active ]")
    assert host.run("stat -c '%i %Y' /run/kvmsup/claims/tiny.env").stdout == before
    assert guests.allowed(host, guests.pid(host, "tiny"))["CPU 0/KVM"] == "2"
    host.run(f"rm {DROPIN}/test.conf; systemctl daemon-reload")
    guests.kill(host, "tiny")
    assert guests.leftovers(host) == []


def test_restart_after_an_edit_claims_anew(host: Host) -> None:
    guests.start(host, "tiny")
    impatient(host)
    guests.configure(host, {"tiny": guests.TINY.replace("64M", "96M")})
    host.run("systemctl restart kvm@tiny", timeout=120)
    assert guests.pages(host) == (48, 0)
    assert guests.claim(host, "tiny")["PAGES_GROWN"] == "0=48"
    guests.kill(host, "tiny")
    assert guests.pages(host) == (0, 0)


def test_a_start_that_overtakes_a_stop_does_not_mix_two_files(host: Host) -> None:
    """Setup is still up, and does not run again: a guest of another size would have the claim of this one."""
    impatient(host)
    guests.start(host, "tiny")
    host.run("systemctl stop --no-block kvm@tiny")
    guests.configure(host, {"tiny": "# as it was\n" + guests.TINY})
    guests.start(host, "tiny")
    before = host.run("stat -c %i /run/kvmsup/claims/tiny.env").stdout
    host.run("systemctl stop --no-block kvm@tiny")
    guests.configure(host, {"tiny": guests.TINY.replace("64M", "96M")})
    assert guests.start(host, "tiny", check=False).rc == 1
    assert host.run("stat -c %i /run/kvmsup/claims/tiny.env", check=False).stdout in (before, "")
    assert "than QEMU was started from: memory.size 64M → 96M" in guests.said(host, "tiny")
    guests.released(host, "tiny")
    host.run("systemctl reset-failed 'kvm*'", check=False)
    guests.start(host, "tiny")
    assert guests.pages(host) == (48, 0)
    guests.kill(host, "tiny")
    assert guests.leftovers(host) == []


def test_a_restart_into_a_broken_file_gives_everything_back(host: Host) -> None:
    guests.start(host, "tiny")
    impatient(host)
    guests.configure(host, {"tiny": guests.TINY.replace("64M", "64MB")})
    assert host.run("systemctl restart kvm@tiny", check=False, timeout=120).rc == 1
    guests.released(host, "tiny")
    assert guests.pages(host) == (0, 0)
    assert guests.leftovers(host) == []


@pytest.mark.parametrize("last", [False, True], ids=["beside others", "the last guest"])
def test_a_restart_that_is_called_off_half_way_gives_everything_back(host: Host, last: bool) -> None:
    """Its setup unit is down with the claim kept, and runs no release any more: the supervisor sees to it."""
    host.put(b"[Service]\nType=oneshot\nExecStart=sh -c '[ ! -e /run/slow ] || sleep 600'\n", f"{UNITS}/slow.service")
    host.run(f"mkdir -p {UNITS}/kvm-setup@tiny.service.d")
    host.put(b"[Unit]\nWants=slow.service\nAfter=slow.service\n", f"{UNITS}/kvm-setup@tiny.service.d/slow.conf")
    impatient(host)
    guests.start(host, "tiny")
    host.run(f"systemctl {'stop' if last else 'start'} keep-supervisor; touch /run/slow")
    host.run("systemctl restart --no-block kvm@tiny")
    host.wait_for("[ $(systemctl show -P ActiveState kvm-setup@tiny) = inactive ]", timeout=60)
    assert guests.pages(host) == (32, 0)
    host.run("systemctl stop kvm@tiny kvm-setup@tiny slow; rm /run/slow")
    guests.released(host, "tiny")
    host.run(f"rm -r {UNITS}/slow.service {UNITS}/kvm-setup@tiny.service.d; systemctl daemon-reload")
    assert guests.pages(host) == (0, 0)
    assert guests.leftovers(host) == []
    guests.keep_supervisor(host)


def test_a_guest_that_ignores_the_power_button_is_cut_off_in_time(host: Host) -> None:
    impatient(host)
    guests.start(host, "tiny")
    guests.stop(host, "tiny")
    assert "the guest has not shut down within 6 s: cutting its power" in guests.said(host, "tiny")
    assert guests.show(host, "kvm@tiny", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert guests.leftovers(host) == []


def test_an_administrators_own_pages_stay(host: Host) -> None:
    """Pages that were there, or were added in between, are not ours to take."""
    pool = guests.PAGES.format(node=0)
    host.run(f"echo 10 > {pool}")
    guests.start(host, "tiny")
    assert guests.claim(host, "tiny")["PAGES_GROWN"] == "0=22"
    assert guests.pages(host) == (32, 0)
    host.run(f"echo 37 > {pool}")
    guests.kill(host, "tiny")
    assert guests.pages(host) == (15, 0)
    host.run(f"echo 0 > {pool}")


def test_two_guests_share_one_pool_exactly(host: Host) -> None:
    second = guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "0"').replace("vcpus = 2", "vcpus = 1")
    guests.configure(host, {"one": second, "two": second.replace("64M", "32M")})
    host.run("systemctl start kvm@one kvm@two", timeout=240)
    assert guests.pages(host) == (48, 0)
    assert guests.claim(host, "one")["VCPU_CPUS"] != guests.claim(host, "two")["VCPU_CPUS"]
    guests.kill(host, "one")
    assert guests.pages(host) == (16, 0)
    guests.kill(host, "two")
    assert guests.pages(host) == (0, 0)
    assert guests.leftovers(host) == []


def impatient(host: Host, *more: str) -> None:
    """Nobody hears the power button: do not wait long for it."""
    lines = ("[Service]", "TimeoutStopSec=12", *more, "")
    host.run(f"mkdir -p {DROPIN}")
    host.put("\n".join(lines).encode(), f"{DROPIN}/test.conf")
    host.run("systemctl daemon-reload")
