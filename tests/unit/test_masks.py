# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's masks in /proc and /sys, on a host made of files: the kernel's formats, and what is written down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmsup.effects import files, masks
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from tests.unit import trees
from tests.unit.hosts import claim
from tests.unit.trees import small_run

__all__ = ["small_run"]  # a fixture

FILES = {
    "/proc/irq/default_smp_affinity": "ff",
    "/proc/sys/kernel/watchdog_cpumask": "0-7",
    "/proc/irq/9/smp_affinity_list": "0-3",
    "/proc/irq/24/smp_affinity_list": "2-3",
    "/proc/irq/25/smp_affinity_list": "6",
    "/sys/class/net/eth0/queues/rx-0/rps_cpus": "0000000c",
    "/sys/class/net/eth0/queues/rx-1/rps_cpus": "00000000",
    "/sys/class/net/eth0/queues/tx-0/xps_cpus": "0f",
}
INTERRUPTS = """\
           CPU0       CPU1
  0:         11          0  IO-APIC   2-edge      timer
  9:          1          0  IO-APIC   9-fasteoi   acpi
 24:          5          7  PCI-MSIX-0000:00:03.0   0-edge      virtio0-config, other
 25:          5          7  PCI-MSIX-0000:00:03.0   1-edge      virtio0-req.6
LOC:        100        200   Local timer interrupts
ERR:          0"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("kvmsup.effects.kernel.version", lambda: (6, 12))
    found = str(tmp_path)
    trees.cpus(found, {number: f"{number & ~1}-{number | 1}" for number in range(8)}, {0: "0-3", 1: "4-7"})
    for path, text in FILES.items():
        trees.write(found, path, text)
    trees.write(found, "/proc/interrupts", INTERRUPTS)
    monkeypatch.setattr("kvmsup.effects.files.write_attribute", written)
    (tmp_path / "run/kvmsup").mkdir(parents=True)
    return found


def written(path: str, value: str) -> None:
    """As the kernel takes it: all of it is new. An interrupt of a queue for each CPU is not moved."""
    if "/irq/25/" in path:
        raise HostError(f"{path}: cannot write {value}: Input/output error")
    Path(path).write_text(f"{value}\n")


def isolated(*cpus: str) -> Claim:
    return claim("rt", cpus)._replace(isolate=True)


def now(root: str) -> dict[str, str]:
    return {path: trees.read(root, path) for path in FILES}


def test_all_keep_off_and_come_back(root: str) -> None:
    told = masks.settle(root, [isolated("2", "3")])
    assert told == [
        "new interrupts",
        "the lockup detector",
        "acpi (9)",
        "virtio0-config, other (24)",
        "packets of eth0 rx-0",
    ]
    assert now(root) == FILES | {
        "/proc/irq/default_smp_affinity": "000000f3",
        "/proc/sys/kernel/watchdog_cpumask": "0-1,4-7",
        "/proc/irq/9/smp_affinity_list": "0-1",
        "/proc/irq/24/smp_affinity_list": "0-1",  # it had no other: housekeeping
        "/sys/class/net/eth0/queues/rx-0/rps_cpus": "00000003",
    }
    assert masks.settle(root, [isolated("2", "3")]) == []
    masks.settle(root, [])
    as_written = {"/proc/irq/default_smp_affinity": "000000ff", "/sys/class/net/eth0/queues/rx-0/rps_cpus": "0000000c"}
    assert now(root) == FILES | as_written
    assert not Path(f"{root}/run/kvmsup/masks.found").exists()


def test_a_full_run_keeps_no_masks(root: str, small_run: Path) -> None:
    """Putting back needs no room; where masks are about to be changed, and that cannot be written down, none is."""
    masks.settle(root, [isolated("2", "3")])
    trees.fill(small_run)
    masks.settle(root, [])
    assert now(root)["/proc/irq/9/smp_affinity_list"] == "0-3"
    assert sorted(os.listdir(small_run / "kvmsup")) == ["claims"]
    trees.fill(small_run)  # the record's page
    before = now(root)
    with pytest.raises(files.NoRoom):
        masks.settle(root, [isolated("2", "3")])
    assert now(root) == before


def test_the_hosts_housekeeping_is_where_they_go(root: str) -> None:
    trees.write(root, "/etc/kvmsup.toml", '[cpu]\nhousekeeping = "1,4"')
    masks.settle(root, [isolated("2", "3")])
    assert trees.read(root, "/proc/irq/24/smp_affinity_list") == "1,4"


def test_nothing_is_looked_at_where_nobody_is_isolated(root: str) -> None:
    Path(f"{root}/proc/irq/9/smp_affinity_list").write_text("nonsense")
    assert masks.settle(root, [claim("web", ["2"])]) == []
    assert not Path(f"{root}/run/kvmsup/masks.found").exists()


def test_what_the_kernel_does_not_move_is_told_and_not_written_down(root: str) -> None:
    told = masks.settle(root, [isolated("5", "6")])
    assert "virtio0-req.6 (25)" not in told
    assert masks.stuck(root, frozenset((5, 6))) == [masks.Stuck(25, "virtio0-req.6")]
    assert masks.astray(root, frozenset((5, 6))) == []
    assert "irq/25" not in Path(f"{root}/run/kvmsup/masks.found").read_text()


def test_what_somebody_has_moved_back_is_told(root: str) -> None:
    masks.settle(root, [isolated("2", "3")])
    trees.write(root, "/proc/irq/9/smp_affinity_list", "3")
    trees.write(root, "/sys/class/net/eth0/queues/rx-0/rps_cpus", "f")
    assert masks.astray(root, frozenset((2, 3))) == ["acpi (9)", "packets of eth0 rx-0"]
    assert masks.stuck(root, frozenset((2, 3))) == []
    masks.settle(root, [])
    assert trees.read(root, "/proc/irq/9/smp_affinity_list") == "3"
    assert trees.read(root, "/sys/class/net/eth0/queues/rx-0/rps_cpus") == "f"


def test_a_line_that_was_cut_off_costs_no_other(root: str) -> None:
    masks.settle(root, [isolated("2", "3")])
    record = Path(f"{root}/run/kvmsup/masks.found")
    record.write_text(f"irq/24\nirq/25 x-y 1\n{record.read_text()}irq/77 0- 1")
    masks.settle(root, [])
    assert now(root)["/proc/sys/kernel/watchdog_cpumask"] == "0-7"
    assert now(root)["/proc/irq/9/smp_affinity_list"] == "0-3"
    assert not record.exists()


def test_a_record_that_is_nonsense_is_none(root: str) -> None:
    for text in ("irq/9 0-3\n", "irq/9 x 1\n", "\0\n", ""):
        Path(f"{root}/run/kvmsup/masks.found").write_text(text)
        masks.settle(root, [])
        assert not Path(f"{root}/run/kvmsup/masks.found").exists()
    assert now(root) == FILES


def test_older_kernels_have_workqueues_and_threads_moved_too(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmsup.effects.kernel.version", lambda: (6, 5))
    trees.write(root, "/sys/devices/virtual/workqueue/cpumask", "ff")
    pinned: dict[int, frozenset[int]] = {}
    monkeypatch.setattr("kvmsup.effects.pin.pin", lambda tid, cpus: pinned.__setitem__(tid, cpus))
    for pid, name, flags, allowed in (
        (2, "kthreadd", 0x200000, "0-7"),
        (16, "ksoftirqd/2", 0x4200000, "2"),
        (900, "sh", 0, "0-7"),
    ):
        trees.write(root, f"/proc/{pid}/stat", trees.stat(name, 0, flags))
        trees.write(root, f"/proc/{pid}/status", f"Cpus_allowed_list:\t{allowed}")
    assert "workqueues" in masks.settle(root, [isolated("2", "3")])
    assert trees.read(root, "/sys/devices/virtual/workqueue/cpumask") == "000000f3"
    assert pinned == {2: frozenset((0, 1, 4, 5, 6, 7))}
    trees.write(root, "/proc/2/status", "Cpus_allowed_list:\t0-1,4-7")
    masks.settle(root, [])
    assert trees.read(root, "/sys/devices/virtual/workqueue/cpumask") == "000000ff"
    assert pinned == {2: frozenset(range(8))}


def test_who_sees_no_links_leaves_their_masks_for_the_next(root: str) -> None:
    """The supervisor, which sweeps what a release was killed over, has a network of its own."""
    masks.settle(root, [isolated("2", "3")])
    queue = Path(f"{root}/sys/class/net/eth0")
    queue.rename(f"{root}/eth0")
    trees.write(root, "/sys/class/net/lo/queues/rx-0/rps_cpus", "0")  # its own
    for who, network in (("self", "a"), ("1", "b")):
        trees.write(root, f"/proc/{who}/ns/net", network)
    masks.settle(root, [])
    assert Path(f"{root}/run/kvmsup/masks.found").read_text() == "rps/eth0/rx-0 2-3 0-1\n"
    assert trees.read(root, "/proc/irq/24/smp_affinity_list") == "2-3"
    Path(f"{root}/eth0").rename(queue)
    Path(f"{root}/proc/1/ns/net").unlink()
    Path(f"{root}/proc/1/ns/net").hardlink_to(f"{root}/proc/self/ns/net")
    masks.settle(root, [])
    assert trees.read(root, "/sys/class/net/eth0/queues/rx-0/rps_cpus") == "0000000c"
    assert not Path(f"{root}/run/kvmsup/masks.found").exists()
