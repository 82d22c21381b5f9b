# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host whose kernel isolates CPUs from boot on: who gets them, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import guests
from tests.lab.host import Host, Lab

DEDICATED = guests.TINY.replace('hugepages = "2M"', "")


@pytest.fixture(scope="module")
def isolated(still_lab: Lab, deb: Path) -> Iterator[Host]:
    """CPU 3 and 6-7 are isolated: a core of node 1 as a whole, and half a core of node 0."""
    with still_lab.boot("isolcpus=3,6-7 nohz_full=6-7") as host:
        host.install(deb)
        yield host


def test_isolated_cpus_go_to_dedicated_guests_first_and_to_no_shared_one(isolated: Host) -> None:
    assert isolated.read("/sys/devices/system/cpu/isolated") == "3,6-7\n"
    own = DEDICATED.replace('"dedicated"', '"dedicated"\nisolate = true')
    guests.configure(isolated, {"own": own, "crowd": guests.SHARED, "next": DEDICATED})
    (planned,) = guests.kvmsup(isolated, "plan own")
    assert "isolated by isolcpus=, and so for dedicated guests first" in planned["why"]
    guests.start(isolated, "own")
    assert guests.claim(isolated, "own")["VCPU_CPUS"] == "6 7"
    threads = guests.allowed(isolated, guests.pid(isolated, "own"))
    assert (threads.pop("CPU 0/KVM"), threads.pop("CPU 1/KVM")) == ("6", "7")
    assert set(threads.values()) == {"0-1"}
    partition = "/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@own.service/qemu/vcpu/cpuset.cpus.partition"
    assert isolated.read(partition) == "isolated\n"
    guests.start(isolated, "crowd")
    assert guests.allowed(isolated, guests.pid(isolated, "crowd"))["CPU 0/KVM"] == "0-2,4-5"
    # Half a core is no better than none: a whole one that is not isolated.
    guests.start(isolated, "next")
    assert guests.claim(isolated, "next")["VCPU_CPUS"] == "4 5"
    assert guests.kvmsup(isolated, "verify")["ok"] is True
    for name in ("own", "next", "crowd"):
        guests.kill(isolated, name)
    assert guests.leftovers(isolated) == []
    assert isolated.read("/sys/devices/system/cpu/isolated") == "3,6-7\n"


def test_a_list_of_isolated_cpus_is_refused(isolated: Host) -> None:
    guests.configure(isolated, {"stuck": guests.SHARED + '[placement.vcpu]\n0 = "6-7"\n'})
    told = isolated.run("kvmsup check stuck", check=False)
    assert told.rc == 1
    assert (
        "placement.vcpu.0: CPU 6-7 is isolated by isolcpus=, where the kernel does not spread threads" in told.stderr
    )
    isolated.run("rm /etc/kvmsup/stuck.toml")


def test_isolated_cpus_are_marked_and_looked_at(isolated: Host) -> None:
    picture = isolated.run("COLUMNS=80 kvmsup topology").stdout
    marks = {int(cpu): mark for cpu, mark in re.findall(r"│ +(\d) +(in?) +(?=│)", picture)}
    assert marks == {3: "i", 6: "in", 7: "in"}
    findings = guests.kvmsup(isolated, "host", check=False)["findings"]
    told = " ".join(f"{one['what']} {one['told']} {one['fix']}" for one in findings if one["area"] == "CPUs")
    assert "6-7" in told
    assert "nohz_full" in told
