# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is read from the kernel's files and written to them: topology, memory, hugepage pools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmsup.effects import cgroup, hugepages, numa_maps, observe, proc, sysfs
from kvmsup.effects.glance import Seen
from kvmsup.effects.numa_maps import Part
from kvmsup.errors import HostError
from tests.unit import trees
from tests.unit.hosts import claim
from tests.unit.trees import PAGE, Pools, pools

__all__ = ["pools"]  # a fixture


def test_topology_of_one_cpu_without_nodes(tmp_path: Path) -> None:
    trees.cpus(str(tmp_path), {0: ""})
    found = sysfs.topology(str(tmp_path))
    assert found.online == found.nodes == {0}
    assert found.cores() == (frozenset((0,)),)


NONE = "the kernel's list is not a list such as 0-3,8:"


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("/sys/devices/system/cpu/online", None, "cannot read: No such file or directory"),
        ("/sys/devices/system/cpu/online", "0-", f"{NONE} '0-' is neither a number nor a range"),
        ("/sys/devices/system/cpu/online", "", "the kernel says that no CPU is online"),
        ("/sys/devices/system/cpu/present", None, "cannot read: No such file or directory"),
        ("/sys/devices/system/cpu/isolated", "x", f"{NONE} 'x' is neither a number nor a range"),
    ],
)  # fmt: skip
def test_topology_that_is_none(tmp_path: Path, path: str, text: str | None, said: str) -> None:
    root = str(tmp_path)
    trees.cpus(root, {0: "0"})
    Path(root + path).unlink()
    if text is not None:
        trees.write(root, path, text)
    with pytest.raises(HostError) as caught:
        sysfs.topology(root)
    assert str(caught.value) == f"{root}{path}: {said}"


def test_free_memory(tmp_path: Path) -> None:
    lines = ["MemTotal:  9 kB", "MemFree:  3 kB", "Active(file):  2 kB", "HugePages_Free: 7", "Inactive(file): 1 kB"]
    text = "\n".join(f"Node 0 {line}" for line in lines)
    trees.write(str(tmp_path), "/sys/devices/system/node/node0/meminfo", text)
    assert sysfs.free_memory(str(tmp_path), frozenset((0, 1))) == {0: 6 << 10, 1: 0}


def test_pool(tmp_path: Path, pools: Pools) -> None:
    pools.create(0, 10, used=4)
    assert hugepages.pool(str(tmp_path), 0, PAGE) == hugepages.Pool(10, 6, 0)
    with pytest.raises(HostError) as caught:
        hugepages.pool(str(tmp_path), 0, 1 << 30)
    hint = "grep . /sys/kernel/mm/hugepages/*/nr_hugepages shows the sizes there are"
    assert str(caught.value) == f"node 0 has no pool of 1G pages\n  hint: {hint}"


@pytest.mark.parametrize(("room", "came", "compacted"), [(1000, 5, False), (12, 2, True), (10, 0, True)])
def test_grow(tmp_path: Path, pools: Pools, room: int, came: int, compacted: bool) -> None:
    pools.create(1, 10, room=room)
    assert hugepages.grow(str(tmp_path), 1, PAGE, 5) == came
    assert pools.total(1) == 10 + came
    assert ("/sys/devices/system/node/node1/compact=1" in pools.written) is compacted


HELD = claim("web", page_size=PAGE, pages={0: 10}, grown={0: 6})


def faulting(root: str, name: str, pid: int, pages: int, *, kind: str = "dedicated") -> None:
    """A QEMU of guest `name` that holds `pages` on node 0."""
    trees.write(root, f"/sys/fs/cgroup/kvm.slice/kvm-{kind}.slice/kvm@{name}.service/cgroup.procs", str(pid))
    maps = [
        f"7f0000000000 bind:0 file=/memfd:mem0 huge dirty={pages} N0={pages} N1=1 kernelpagesize_kB=2048",
        "7f0000000001 default anon=3 N0=3 kernelpagesize_kB=4",
    ]
    trees.write(root, f"/proc/{pid}/numa_maps", "\n".join(maps))


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/kvm.slice/kvm-dedicated.slice/kvm@web.service", ""),
        ("/user.slice/pytest.scope", ""),  # no unit of kvmsup's
        ("/kvm.slice/kvm-shared.slice/kvm@web.service", "kvm-shared.slice"),
        ("/tenant.slice/kvm@web.service", "tenant.slice"),
        ("/kvm@web.service", "the root slice"),
    ],
)
def test_a_guest_in_another_slice(tmp_path: Path, path: str, where: str) -> None:
    root = str(tmp_path)
    cgroup.check_slice(root, 7, HELD)
    trees.write(root, "/proc/7/cgroup", f"12:freezer:/\n0::{path}")
    if not where:
        return cgroup.check_slice(root, 7, HELD)
    with pytest.raises(HostError) as caught:
        cgroup.check_slice(root, 7, HELD)
    assert str(caught.value) == (
        f"kvm@web runs in {where} instead of kvm-dedicated.slice, which keeps guests off each other's CPUs\n"
        "  hint: take Slice= out of its drop-ins (systemctl cat kvm@web); kvm-dedicated.slice may have limits"
    )
    return None


def test_promised(tmp_path: Path) -> None:
    root = str(tmp_path)
    others = [HELD, claim("db", page_size=1 << 30, pages={0: 3}), claim("batch", page_size=PAGE, pages={1: 3})]
    assert hugepages.promised(root, 0, PAGE, others) == 10
    faulting(root, "web", 7, 4)
    assert hugepages.promised(root, 0, PAGE, others) == 6
    assert hugepages.promised(root, 1, PAGE, others) == 3
    faulting(root, "web", 7, 99)
    assert hugepages.promised(root, 0, PAGE, others) == 0
    os.unlink(f"{root}/proc/7/numa_maps")
    assert hugepages.promised(root, 0, PAGE, others) == 10


def test_where_a_bound_guests_memory_is(tmp_path: Path) -> None:
    root = str(tmp_path)
    lines = [
        "7f0 bind:0 anon=300 dirty=300 N0=256 N1=44 kernelpagesize_kB=4",
        "7f1 bind:0-1 anon=8 N0=4 N1=4 kernelpagesize_kB=4",
        "7f2 default stack anon=9 N1=9 kernelpagesize_kB=4",
        "7f3 bind=static:2 huge N2=1 kernelpagesize_kB=2048",
        "7f4 bind:0 file=/usr/lib/N3=5 N0=1 kernelpagesize_kB=4",
        "7f5 bind:x N0=1 kernelpagesize_kB=4",
        "7f6",
        "",
    ]
    trees.write(root, "/proc/7/numa_maps", "\n".join(lines))
    assert numa_maps.bound(root, 7) == [
        Part(0, 4096, 261 << 12, 0),
        Part(1, 4096, 48 << 12, 44 << 12),
        Part(2, 2 << 20, 2 << 20, 0),
    ]
    assert numa_maps.bound(root, 8) == []


def test_where_any_guests_memory_is(tmp_path: Path) -> None:
    """All that is no file's: QEMU's own is among it."""
    root = str(tmp_path)
    lines = [
        "7f0 default anon=300 dirty=300 N0=256 N1=44 kernelpagesize_kB=4",
        "7f1 default heap anon=8 N0=4 N1=4 kernelpagesize_kB=4",
        "7f2 default file=/usr/lib/libc.so.6 anon=1 mapped=30 N1=30 kernelpagesize_kB=4",
        "7f3 default file=/memfd:mem0\\040(deleted) huge dirty=3 N1=3 kernelpagesize_kB=2048",
        "7f4 default anon=3 N1=3",
    ]
    trees.write(root, "/proc/7/numa_maps", "\n".join(lines))
    assert numa_maps.own(root, 7) == [
        Part(0, 4096, 260 << 12, 0),
        Part(1, 4096, 48 << 12, 0),
        Part(1, 2 << 20, 6 << 20, 0),
    ]
    assert numa_maps.of_size(root, 7, 2 << 20) == {1: 3}
    seen = Seen("web", "active", "", "", 7, "", 0.0, "", claim("web", nodes=""), True)
    assert observe.resident(root, seen) == numa_maps.own(root, 7)
    assert observe.resident(root, seen._replace(claim=claim("web"))) == []
    assert observe.resident(root, seen._replace(pid=0)) == []


def test_where_this_process_has_its_memory() -> None:
    """What the kernel here says, against what it says elsewhere."""
    parts = numa_maps.own("", os.getpid())
    private = proc.of_process("", os.getpid())["RssAnon"]
    assert sum(part.size for part in parts) == pytest.approx(private, rel=0.2)
    assert {part.page_size for part in parts} == {4096}


def test_give_back(tmp_path: Path, pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "_SETTLE_SECONDS", 0.05)
    root = str(tmp_path)
    pools.create(0, 16)
    assert hugepages.give_back(root, HELD, []) == {}
    assert pools.total(0) == 10
    # An administrator's change in between stays.
    pools.create(0, 30)
    assert hugepages.give_back(root, HELD, []) == {}
    assert pools.total(0) == 24
    # What is in use, or another guest's, cannot go.
    pools.create(0, 16, used=14)
    assert hugepages.give_back(root, HELD, []) == {0: 4}
    assert pools.total(0) == 14
    pools.create(0, 16)
    assert hugepages.give_back(root, HELD, [claim("db", page_size=PAGE, pages={0: 12})]) == {0: 2}
    assert pools.total(0) == 12
    # An interrupted setup had planned more than it took.
    pools.create(0, 9)
    assert hugepages.give_back(root, HELD._replace(held=False, before={0: 7}), []) == {}
    assert pools.total(0) == 7
