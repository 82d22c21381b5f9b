# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hugepages on a real kernel: filled by the right CPUs, on the right node."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.host import guests
from tests.lab.host import Host

TRACE = "/sys/kernel/tracing"
POOL = "/sys/devices/system/node/node{node}/hugepages/hugepages-{kilobytes}kB/{kind}_hugepages"


@pytest.fixture(autouse=True, scope="module")
def supervisor(host: Host) -> None:
    guests.keep_supervisor(host)


@pytest.fixture(autouse=True)
def as_found(host: Host) -> Iterator[None]:
    """The pools are the same before and after each test, and nothing is left."""
    before = host.run("grep . /sys/devices/system/node/node*/hugepages/*/*_hugepages").stdout
    yield
    assert host.run("grep . /sys/devices/system/node/node*/hugepages/*/*_hugepages").stdout == before
    assert [line for line in guests.leftovers(host) if "kvm-setup@" in line or "claims" in line] == []


def pool(host: Host, node: int, kind: str = "nr", kilobytes: int = 2048) -> int:
    return int(host.read(POOL.format(node=node, kilobytes=kilobytes, kind=kind)))


def test_the_guests_own_cpus_fill_its_pages_on_its_node(host: Host) -> None:
    """Locked as well, and with pages to be had on the node where QEMU itself runs: none of them is touched."""
    text = guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "1"\nemulator = "0"') + "lock = true\n"
    guests.configure(host, {"tiny": text.replace("64M", "256M")})
    host.run(f"echo 64 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")
    event = f"{TRACE}/events/sched/sched_switch"
    host.run(f"echo > {TRACE}/trace; echo 'next_comm == \"touch_pages\"' > {event}/filter; echo 1 > {event}/enable")
    guests.start(host, "tiny")
    host.run(f"echo 0 > {event}/enable; echo 0 > {event}/filter")
    ran = host.run(f"grep touch_pages {TRACE}/trace | grep -o '\\[[0-9]*\\]' | sort -u").stdout.split()
    own = guests.claim(host, "tiny")["VCPU_CPUS"].split()
    assert set(ran) == {f"[{int(cpu):03}]" for cpu in own}
    assert guests.claim(host, "tiny")["FILL_0"].replace("-", ",") in (",".join(own), "-".join(own))
    maps = host.run(f"grep kernelpagesize_kB=2048 /proc/{guests.pid(host, 'tiny')}/numa_maps").stdout
    assert re.findall(r" N(\d+)=(\d+)", maps) == [("1", "128")]
    assert (pool(host, 0), pool(host, 0, "free")) == (64, 64)
    assert guests.kvmsup(host, "verify")["ok"]
    assert guests.kvmsup(host, "status tiny")["memory"][0]["held"] == 128
    # Whatever QEMU used for that has gone, or is with its other threads.
    assert {cpus for name, cpus in guests.allowed(host, guests.pid(host, "tiny")).items() if "CPU" not in name} == {
        "0"
    }
    guests.kill(host, "tiny")
    assert (pool(host, 0), pool(host, 1)) == (64, 0)
    host.run(f"echo 0 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")


def test_ordinary_memory_is_locked_bound_and_told_when_it_has_gone_astray(host: Host) -> None:
    text = guests.SHARED.replace("[memory]", '[placement]\nnodes = "1"\n[memory]\nlock = true')
    guests.configure(host, {"tiny": text})
    guests.start(host, "tiny")
    process = guests.pid(host, "tiny")
    locked = int(host.run(f"awk '/VmLck/{{print $2}}' /proc/{process}/status").stdout)
    assert locked >= 64 << 10
    (resident,) = guests.kvmsup(host, "status tiny")["resident"]
    assert resident == {"node": 1, "size": 64 << 20, "astray": 0}
    assert "memory     node 1: 64M touched" in host.run("kvmsup status tiny").stdout
    assert guests.kvmsup(host, "verify")["ok"]
    # migrate_pages(2): all that is on node 1 goes to node 0.
    script = "import ctypes; m = ctypes.c_ulong; print(ctypes.CDLL(None).syscall(256, {}, 64, {}, {}))"
    masks = ("ctypes.byref(m(2))", "ctypes.byref(m(1))")
    host.run(["python3", "-c", script.format(process, *masks)], timeout=60)
    told = guests.kvmsup(host, "verify", check=False)
    assert [(one["guest"], one["what"], one["wanted"]) for one in told["differences"]] == [
        ("tiny", "memory on node 0, bound to node 1", "none")
    ]
    status = guests.kvmsup(host, "status tiny", check=False)
    assert status["drift"] and status["resident"][0]["astray"] > 32 << 20
    guests.kill(host, "tiny")


def test_pages_of_1g_from_boot(host: Host) -> None:
    """The host has two of them on node 1 since boot: one is used, none added, and none taken away."""
    big = guests.TINY.replace("64M", "1G").replace('"2M"', '"1G"').replace('"dedicated"', '"dedicated"\nnodes = "1"')
    guests.configure(host, {"big": big})
    assert pool(host, 1, "free", 1 << 20) == 2
    guests.start(host, "big")
    assert guests.claim(host, "big")["PAGES_GROWN"] == "1=0"
    assert (pool(host, 1, "nr", 1 << 20), pool(host, 1, "free", 1 << 20)) == (2, 1)
    (entry,) = guests.kvmsup(host, "status big")["memory"]
    assert (entry["held"], entry["pool"], entry["free"]) == (1, 2, 1)
    guests.kill(host, "big")
    assert (pool(host, 1, "nr", 1 << 20), pool(host, 1, "free", 1 << 20)) == (2, 2)
