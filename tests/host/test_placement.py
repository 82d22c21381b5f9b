# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs are owned: who holds them is named, who leaves is waited for."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host


@pytest.fixture(scope="module", autouse=True)
def supervised(host: Host) -> None:
    guests.keep_supervisor(host)


def pinned(*cpus: int) -> str:
    pins = "".join(f'{index} = "{cpu}"\n' for index, cpu in enumerate(cpus))
    text = guests.TINY.replace("vcpus = 2", f"vcpus = {len(cpus)}")
    return text.replace("[memory]", f"[placement.vcpu]\n{pins}[memory]").replace('hugepages = "2M"', "")


def test_a_cpu_of_another_guest_is_refused_naming_it(host: Host) -> None:
    guests.configure(host, {"first": pinned(4, 5), "second": pinned(5, 6)})
    guests.start(host, "first")
    assert guests.start(host, "second", check=False).rc == 1
    sentence = "placement.vcpu: CPU 5 is dedicated to guest first\n  hint: choose other CPUs, or stop that guest\n"
    assert sentence in guests.said(host, "second")
    assert guests.allowed(host, guests.pid(host, "first"))["CPU 1/KVM"] == "5"
    guests.kill(host, "first")
    guests.start(host, "second")
    guests.kill(host, "second")
    assert guests.leftovers(host) == []


def test_stop_then_start_on_the_same_cpus_just_works(host: Host) -> None:
    """`systemctl stop` returns when QEMU is gone; the setup unit goes a moment later, and is waited for."""
    guests.configure(host, {"leaving": pinned(4, 5), "coming": pinned(4, 5)})
    host.run("mkdir -p /etc/systemd/system/kvm@.service.d")
    host.put(b"[Service]\nTimeoutStopSec=8\n", "/etc/systemd/system/kvm@.service.d/impatient.conf")
    host.run("systemctl daemon-reload")
    guests.start(host, "leaving")
    host.run("systemctl stop kvm@leaving; systemctl start kvm@coming", timeout=120)
    assert guests.claim(host, "coming")["VCPU_CPUS"] == "4 5"
    # And in one go, where the one is still being asked to power down when the other sets up.
    host.run("systemctl stop --no-block kvm@coming; systemctl start kvm@leaving", timeout=120)
    assert guests.claim(host, "leaving")["VCPU_CPUS"] == "4 5"
    assert "waiting for coming to stop" in guests.said(host, "leaving")
    guests.kill(host, "leaving")
    assert guests.leftovers(host) == []


def test_dedicated_guests_fill_the_host_and_the_next_is_refused(host: Host) -> None:
    texts = {f"g{number}": guests.TINY.replace('hugepages = "2M"', "") for number in range(4)}
    guests.configure(host, texts)
    host.run("systemctl start kvm@g0 kvm@g1 kvm@g2 kvm@g3", check=False, timeout=240)
    up = [name for name in texts if guests.state(host, f"kvm@{name}") == "active"]
    owned = [guests.claim(host, name)["VCPU_CPUS"] for name in up]
    assert sorted(owned) == ["2 3", "4 5", "6 7"]
    refused = next(name for name in texts if name not in up)
    said = guests.said(host, refused)
    assert "2 dedicated CPUs: there is room for 0 on node 0, 0 on node 1; CPU 2-3" in said
    for name in up:
        guests.kill(host, name)
    assert guests.leftovers(host) == []


def test_housekeeping_cpus_are_not_given_away(host: Host) -> None:
    guests.configure(host, {"greedy": pinned(0, 1)})
    assert guests.start(host, "greedy", check=False).rc == 1
    assert "placement.vcpu: CPU 0-1 is for housekeeping, which no guest may own" in guests.said(host, "greedy")


def test_too_few_hugepages_are_refused_with_the_node_and_given_back(host: Host) -> None:
    big = guests.TINY.replace('"64M"', '"40G"').replace('"dedicated"', '"dedicated"\nnodes = "1"')
    guests.configure(host, {"big": big})
    refused = guests.start(host, "big", check=False)
    assert refused.rc == 1
    said = guests.said(host, "big")
    assert "node 1 is short of " in said
    assert "20480 needed, 20480 to be added" in said
    assert "hugepagesz=2M hugepages=1:20480" in said
    assert guests.pages(host) == (0, 0)
    assert guests.leftovers(host) == []


def test_shared_guests_are_fenced_off_owned_cpus_and_get_them_back(host: Host) -> None:
    fence = "/sys/fs/cgroup/kvm.slice/kvm-shared.slice/cpuset.cpus.effective"
    guests.configure(host, {"crowd": guests.SHARED, "owner": pinned(4, 5)})
    guests.start(host, "crowd")
    assert guests.allowed(host, guests.pid(host, "crowd"))["CPU 0/KVM"] == "0-7"
    guests.start(host, "owner")
    assert host.read(fence) == "0-3,6-7\n"
    assert guests.allowed(host, guests.pid(host, "crowd"))["CPU 0/KVM"] == "0-3,6-7"
    assert guests.allowed(host, guests.pid(host, "owner"))["CPU 0/KVM"] == "4"
    assert guests.kvmsup(host, "status crowd")["drift"] is False
    host.run("systemctl daemon-reload")
    assert host.read(fence) == "0-3,6-7\n"
    host.run("mkdir -p /etc/systemd/system/kvm-shared.slice.d")
    host.put(b"[Slice]\nCPUWeight=50\n", "/etc/systemd/system/kvm-shared.slice.d/mine.conf")
    guests.kill(host, "owner")
    assert host.read(fence) == "0-7\n"
    assert host.read("/etc/systemd/system/kvm-shared.slice.d/mine.conf")
    assert guests.allowed(host, guests.pid(host, "crowd"))["CPU 0/KVM"] == "0-7"
    guests.kill(host, "crowd")
    assert guests.leftovers(host) == []


def test_the_last_cpu_of_a_shared_vcpu_is_not_taken(host: Host) -> None:
    stuck = guests.SHARED.replace("[memory]", '[placement.vcpu]\n0 = "6"\n[memory]')
    guests.configure(host, {"stuck": stuck, "owner": pinned(6)})
    guests.start(host, "stuck")
    assert guests.start(host, "owner", check=False).rc == 1
    sentence = "CPU 6 would be taken from shared guest stuck, which has no other for a vCPU"
    assert sentence in guests.said(host, "owner")
    guests.kill(host, "stuck")
    assert guests.leftovers(host) == []
