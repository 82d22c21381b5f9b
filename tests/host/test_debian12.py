# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian 12 (Linux 6.1, systemd 252, QEMU 7.2): install, start, stop, upgrade with a guest running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsup import cpulist
from tests.host import guests
from tests.host.conftest import make_lab
from tests.lab.host import Host


@pytest.fixture(scope="module")
def old_host(pytestconfig: pytest.Config, deb: Path) -> Iterator[Host]:
    lab = make_lab(pytestconfig, "bookworm", linux_guests=False)
    with lab.fresh(lab.installed(deb)) as host:
        yield host


def test_the_versions_are_the_oldest_supported(old_host: Host) -> None:
    told = old_host.run("uname -r; systemctl --version; qemu-system-x86_64 --version; python3 --version").stdout
    for version in ("6.1.", "systemd 252", "version 7.2", "Python 3.11"):
        assert version in told


def test_a_guest_starts_pinned_and_stops(old_host: Host) -> None:
    guests.configure(old_host, {"tiny": guests.TINY, "other": guests.SHARED})
    guests.start(old_host, "tiny")
    on_node = [32 * (str(node) == guests.claim(old_host, "tiny")["NODES"]) for node in (0, 1)]
    assert guests.pages(old_host) == tuple(on_node)
    assert pinned(old_host) == guests.claim(old_host, "tiny")["VCPU_CPUS"].split()
    # On this kernel they are threads of its own, not QEMU's.
    process = guests.pid(old_host, "tiny")
    for name in (f"kvm-pit/{process}", f"kvm-nx-lpage-recovery-{process}"):
        thread = old_host.run(f"grep -lx '{name}' /proc/[0-9]*/comm | cut -d/ -f3").stdout.strip()
        assert f"Cpus_allowed_list:\t{guests.claim(old_host, 'tiny')['EMULATOR_CPUS']}\n" in old_host.read(
            f"/proc/{thread}/status"
        )
    guests.start(old_host, "other")
    others = cpulist.render(set(range(8)) - set(map(int, pinned(old_host))))
    assert guests.allowed(old_host, guests.pid(old_host, "other"))["CPU 0/KVM"] == others
    # Enabling the cpuset controller, which the fence needs, wipes affinities before Linux 6.2.
    assert pinned(old_host) == guests.claim(old_host, "tiny")["VCPU_CPUS"].split()
    guests.kill(old_host, "other")
    old_host.run("mkdir -p /run/systemd/system/kvm@.service.d")
    old_host.put(b"[Service]\nTimeoutStopSec=8\n", "/run/systemd/system/kvm@.service.d/impatient.conf")
    old_host.run("systemctl daemon-reload")
    guests.stop(old_host, "tiny")
    assert guests.pages(old_host) == (0, 0)
    assert guests.leftovers(old_host) == []


def test_smt_that_the_host_does_not_show_is_not_promised(old_host: Host) -> None:
    """This kernel sees no SMT in the lab, so a guest that is to see siblings has nowhere to go."""
    guests.configure(old_host, {"pair": guests.TINY.replace("vcpus = 2", "vcpus = 2\nthreads = 2")})
    assert guests.start(old_host, "pair", check=False).rc == 1
    said = "threads = 2: the cores that guests may have show 1 of their siblings at the most"
    assert said in guests.said(old_host, "pair")
    explained = old_host.run("journalctl --boot --no-pager -x KVMSUP_GUEST=pair").stdout
    assert "░░ Subject: Guest pair cannot have the host CPUs it asks for\n" in explained


def test_nothing_is_isolated_on_its_kernel(old_host: Host) -> None:
    guests.configure(old_host, {"quiet": guests.ISOLATED})
    assert guests.start(old_host, "quiet", check=False).rc == 1
    said = guests.said(old_host, "quiet")
    assert "placement.isolate: on this kernel a cpuset that changes undoes the pins of all threads in it" in said
    assert "hint: Linux 6.2 or newer (Debian 12: from bookworm-backports), or isolcpus= at boot" in said
    guests.released(old_host, "quiet")
    old_host.run("rm /etc/kvmsup/quiet.toml; systemctl daemon-reload; systemctl reset-failed 'kvm*'", check=False)


def test_one_field_finds_what_concerns_a_guest(old_host: Host) -> None:
    """All but systemd's own words on the units, to which this one adds no fields. Who is killed says nothing."""
    for name, silent in (("tiny", False), ("other", True), ("pair", False)):
        found = guests.entries(old_host, f"KVMSUP_GUEST={name}")
        shown = guests.entries(old_host, f"-u kvm@{name} -u kvm-setup@{name}")
        assert {entry["KVMSUP_GUEST"] for entry in found} <= {name}
        assert found or silent
        cursors = {entry["__CURSOR"] for entry in found}
        others = [entry for entry in shown if entry["__CURSOR"] not in cursors]
        assert [entry["MESSAGE"] for entry in others if entry.get("_PID") != "1"] == []


def test_an_upgrade_leaves_guests_alone(old_host: Host, deb: Path) -> None:
    guests.start(old_host, "tiny")
    before = (guests.pid(old_host, "tiny"), guests.claim(old_host, "tiny"))
    old_host.install(deb)
    assert (guests.pid(old_host, "tiny"), guests.claim(old_host, "tiny")) == before
    guests.kill(old_host, "tiny")
    assert guests.leftovers(old_host) == []


def pinned(host: Host) -> list[str]:
    """Where the kernel lets the two vCPUs run. This kernel sees no SMT in the lab: the CPUs are others."""
    threads = guests.allowed(host, guests.pid(host, "tiny"))
    return [threads["CPU 0/KVM"], threads["CPU 1/KVM"]]
