# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole topologies of many machines against facts that were written down by hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvmsup import cpulist
from kvmsup.effects import files, sysfs
from kvmsup.errors import HostError
from kvmsup.model.topology import Topology
from tests.unit import machines
from tests.unit.machines import CPU, GIB, NODE


class Facts(NamedTuple):
    """What is true of a machine: lists as the kernel writes them, one a group, groups by their first CPU."""

    cores: str
    caches: str
    packages: dict[int, str]
    nodes: dict[int, str]
    memory: dict[int, int]  # GiB
    distances: dict[int, str] = {}  # by node, in the order of the nodes  # noqa: RUF012
    dies: str = ""  # "": each package is one
    present: str = ""  # "": the online ones
    isolated: str = ""
    nohz_full: str = ""
    kinds: tuple[tuple[str, str], ...] = ()
    housekeeping: str = "0"


FACTS = {
    "hybrid_laptop": Facts(
        cores="0-1 2-3 4-5 6-7 8-9 10-11 12 13 14 15 16 17 18 19",
        caches="0-19",
        packages={0: "0-19"},
        nodes={0: "0-19"},
        memory={0: 32},
        distances={0: "10"},
        kinds=(("core", "0-11"), ("atom", "12-19")),
        housekeeping="0-1",
    ),
    "hybrid_without_l3": Facts(
        cores="0-1 2-3 4-5 6-7 8 9",
        caches="0-7 8-9",
        packages={0: "0-9"},
        nodes={0: "0-9"},
        memory={0: 16},
        distances={0: "10"},
        kinds=(("core", "0-7"), ("lowpower", "8-9")),
        housekeeping="0-1",
    ),
    "small_vm": Facts(cores="0", caches="0", packages={0: "0"}, nodes={0: "0"}, memory={0: 0}),
    "two_sockets_apart": Facts(
        cores="0,16 1,17 2,18 3,19 4,20 5,21 6,22 7,23 8,24 9,25 10,26 11,27 12,28 13,29 14,30 15,31",
        caches="0-7,16-23 8-15,24-31",
        packages={0: "0-7,16-23", 1: "8-15,24-31"},
        nodes={0: "0-7,16-23", 1: "8-15,24-31"},
        memory={0: 64, 1: 64},
        distances={0: "10 21", 1: "21 10"},
        housekeeping="0,8,16,24",
    ),
    "two_sockets_beside": Facts(
        cores="0-1 2-3 4-5 6-7 8-9 10-11 12-13 14-15 16-17 18-19 20-21 22-23 24-25 26-27 28-29 30-31",
        caches="0-15 16-31",
        packages={0: "0-15", 1: "16-31"},
        nodes={0: "0-15", 1: "16-31"},
        memory={0: 64, 1: 64},
        distances={0: "10 21", 1: "21 10"},
        housekeeping="0-1,16-17",
    ),
    "epyc_nps4": Facts(
        cores=" ".join(f"{core},{core + 64}" for core in range(64)),
        caches=(
            "0-3,64-67 4-7,68-71 8-11,72-75 12-15,76-79 16-19,80-83 20-23,84-87 24-27,88-91 28-31,92-95"
            " 32-35,96-99 36-39,100-103 40-43,104-107 44-47,108-111 48-51,112-115 52-55,116-119 56-59,120-123"
            " 60-63,124-127"
        ),
        packages={0: "0-31,64-95", 1: "32-63,96-127"},
        nodes={
            0: "0-7,64-71",
            1: "8-15,72-79",
            2: "16-23,80-87",
            3: "24-31,88-95",
            4: "32-39,96-103",
            5: "40-47,104-111",
            6: "48-55,112-119",
            7: "56-63,120-127",
        },
        memory=dict.fromkeys(range(8), 32),
        distances={0: "10 12 12 12 32 32 32 32", 3: "12 12 12 10 32 32 32 32", 6: "32 32 32 32 12 12 10 12"},
        housekeeping="0,8,16,24,32,40,48,56,64,72,80,88,96,104,112,120",
    ),
    "memoryless_node": Facts(
        cores="0 1 2 3 4 5 6 7",
        caches="0-3 4-7",
        packages={0: "0-3", 1: "4-7"},
        nodes={0: "0-3", 1: "4-7"},
        memory={0: 16, 1: 0},
        distances={0: "10 21", 1: "21 10"},
        housekeeping="0,4",
    ),
    "cxl_memory": Facts(
        cores="0,4 1,5 2,6 3,7",
        caches="0-7",
        packages={0: "0-7"},
        nodes={0: "0-7", 1: ""},
        memory={0: 64, 1: 128},
        distances={0: "10 14", 1: "14 10"},
        housekeeping="0,4",
    ),
    "sparse": Facts(
        cores="0-3 4-7 88-91 92-95",
        caches="0-3 4-7 88-91 92-95",
        packages={0: "0-7", 8: "88-95"},
        nodes={0: "0-7", 8: "88-95", 252: ""},
        memory={0: 123, 8: 127, 252: 15},
        distances={0: "10 40 80", 8: "40 10 80", 252: "80 80 10"},
        present="0-15,88-103",
        housekeeping="0-3",
    ),
    "cpu0_offline": Facts(
        cores="1,5 2 3,7 4",
        caches="1-5,7",
        packages={0: "1-5,7"},
        nodes={0: "1-5,7"},
        memory={0: 8},
        distances={0: "10"},
        present="0-7",
        housekeeping="1,5",
    ),
    "large": Facts(
        cores=" ".join(f"{core},{core + 512}" for core in range(512)),
        caches=" ".join(f"{8 * l3}-{8 * l3 + 7},{8 * l3 + 512}-{8 * l3 + 519}" for l3 in range(64)),
        packages={
            0: "0-63,512-575",
            1: "64-127,576-639",
            2: "128-191,640-703",
            3: "192-255,704-767",
            4: "256-319,768-831",
            5: "320-383,832-895",
            6: "384-447,896-959",
            7: "448-511,960-1023",
        },
        nodes={
            0: "0-63,512-575",
            1: "64-127,576-639",
            2: "128-191,640-703",
            3: "192-255,704-767",
            4: "256-319,768-831",
            5: "320-383,832-895",
            6: "384-447,896-959",
            7: "448-511,960-1023",
        },
        memory=dict.fromkeys(range(8), 512),
        distances={0: "10 32 32 32 32 32 32 32", 7: "32 32 32 32 32 32 32 10"},
        housekeeping="0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
    ),
    "big_little": Facts(
        cores="0 1 2 3 4 5 6 7",
        caches="0-7",
        packages={0: "0-2", 1: "3-5", 2: "6-7"},
        nodes={0: "0-7"},
        memory={0: 0},
        kinds=(("capacity 1024", "6-7"), ("capacity 800", "3-5"), ("capacity 280", "0-2")),
    ),
    "arm_vm": Facts(
        cores="0 1 2 3",
        caches="0 1 2 3",
        packages={0: "0-3"},
        nodes={0: "0-3"},
        memory={0: 4},
        distances={0: "10"},
    ),
    "ppc64_smt8": Facts(
        cores="0-7 8-15",
        caches="0-7 8-15",
        packages={0: "0-15"},
        nodes={0: "0-15"},
        memory={0: 64},
        distances={0: "10"},
        housekeeping="0-7",
    ),
    "s390_books": Facts(
        cores="0 1 2 3 4 5 6 7",
        caches="0 1 2 3 4 5 6 7",
        packages={1: "0-1", 3: "2-7"},
        nodes={0: "0-7"},
        memory={0: 16},
        distances={0: "10"},
    ),
    "isolated": Facts(
        cores="0,4 1,5 2,6 3,7",
        caches="0-7",
        packages={0: "0-7"},
        nodes={0: "0-7"},
        memory={0: 8},
        distances={0: "10"},
        isolated="2-3,6-7",
        nohz_full="2-3,6-7",
        housekeeping="0,4",
    ),
    "desktop": Facts(
        cores="0-1 2-3 4-5 6-7",
        caches="0-7",
        packages={0: "0-7"},
        nodes={0: "0-7"},
        memory={0: 32},
        distances={0: "10"},
        housekeeping="0-1",
    ),
    "big_server": Facts(
        cores=" ".join(f"{core},{core + 128}" for core in range(128)),
        caches=" ".join(f"{8 * l3}-{8 * l3 + 7},{8 * l3 + 128}-{8 * l3 + 135}" for l3 in range(16)),
        packages={0: "0-63,128-191", 1: "64-127,192-255"},
        nodes={0: "0-63,128-191", 1: "64-127,192-255"},
        memory={0: 384, 1: 384},
        distances={0: "10 32", 1: "32 10"},
        housekeeping="0,64,128,192",
    ),
}


def groups(found: Iterable[frozenset[int]]) -> str:
    return " ".join(cpulist.render(group) for group in sorted(set(found), key=min))


def by(found: Topology, field: str) -> dict[int, str]:
    values = sorted({getattr(cpu, field) for cpu in found.cpus.values()})
    return {
        value: cpulist.render(number for number, cpu in found.cpus.items() if getattr(cpu, field) == value)
        for value in values
    }


def test_every_machine_has_facts() -> None:
    assert FACTS.keys() == machines.BUILDERS.keys()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("large"))
    machines.large(root)
    return root


@pytest.mark.parametrize("name", FACTS)
def test_topology(tmp_path: Path, name: str, large: str) -> None:
    if name != "large":
        machines.BUILDERS[name](str(tmp_path))
    found, facts = sysfs.topology(large if name == "large" else str(tmp_path)), FACTS[name]
    assert groups(found.cores()) == facts.cores
    assert groups(cpu.siblings for cpu in found.cpus.values()) == facts.cores
    assert groups(cpu.cache for cpu in found.cpus.values()) == facts.caches
    assert by(found, "package") == facts.packages
    assert {node: cpulist.render(found.cpus_of([node])) for node in sorted(found.nodes)} == facts.nodes
    assert found.memory == {node: size * GIB for node, size in facts.memory.items()}
    told = {node: {int(other): far for other, far in found.distances[node].items()} for node in facts.distances}
    assert {node: " ".join(map(str, far.values())) for node, far in told.items()} == facts.distances
    assert all(list(far) == sorted(facts.nodes) for far in told.values())
    assert list(found.cpus) == sorted(cpulist.parse(",".join(facts.packages.values())))
    assert all(cpu.number == number for number, cpu in found.cpus.items())
    assert cpulist.render(found.present) == (facts.present or cpulist.render(found.online))
    assert cpulist.render(found.isolated) == facts.isolated
    assert cpulist.render(found.nohz_full) == facts.nohz_full
    kinds = {(cpu.grade, cpu.kind) for cpu in found.cpus.values()}
    assert kinds == set(enumerate(kind for kind, _ in facts.kinds or (("", ""),)))
    if facts.kinds:
        assert by(found, "grade") == dict(enumerate(cpus for _, cpus in facts.kinds))
    assert {cpu.die for cpu in found.cpus.values()} == {0}
    assert cpulist.render(found.housekeeping()) == facts.housekeeping
    assert all(found.distance(node, node) == 10 for node in found.nodes)


def test_dies(tmp_path: Path) -> None:
    machine = machines.Machine(str(tmp_path), range(16))
    machine.cores(machines.Core((core, core + 8), core % 2, core // 4, core // 2 % 2) for core in range(8))
    found = sysfs.topology(str(tmp_path))
    assert by(found, "die") == {0: "0-1,4-5,8-9,12-13", 1: "2-3,6-7,10-11,14-15"}
    assert by(found, "package") == {0: "0-3,8-11", 1: "4-7,12-15"}


def test_free_memory_of_a_node_without_any(tmp_path: Path) -> None:
    machines.memoryless_node(str(tmp_path))
    assert sysfs.free_memory(str(tmp_path), frozenset((0, 1))) == {0: 12 * GIB, 1: 0}


LIST, NUMBER = "the kernel's list is not a list such as 0-3,8: ", "the kernel's number is none"
NOT_NUMBERS = "are not numbers"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (f"{CPU}/isolated", LIST),
        (f"{CPU}/nohz_full", LIST),
        (f"{NODE}/online", LIST),
        (f"{NODE}/node0/cpulist", LIST),
        (f"{NODE}/node0/distance", f"the kernel's distances {NOT_NUMBERS}"),
        (f"{CPU}/cpu0/topology/thread_siblings_list", LIST),
        (f"{CPU}/cpu0/topology/core_siblings_list", LIST),
        (f"{CPU}/cpu0/topology/physical_package_id", NUMBER),
        (f"{CPU}/cpu0/topology/die_id", NUMBER),
        (f"{CPU}/cpu0/topology/die_cpus_list", LIST),
        (f"{CPU}/cpu0/cache/index3/shared_cpu_list", LIST),
        (f"{CPU}/cpu0/cpu_capacity", NUMBER),
        ("/sys/devices/cpu_core/cpus", LIST),
    ],
)
def test_garbage_is_a_sentence_with_the_path(tmp_path: Path, path: str, said: str) -> None:
    machine = machines.Machine(str(tmp_path), range(8))
    machine.cores(machines.smt_beside(4))
    machine.caches({1: [(0, 1), (2, 3), (4, 5), (6, 7)], 3: [range(8)]})
    machine.nodes({0: range(8)}, {0: 8}, ["10"])
    for garbage in ("zwei", "1 x", "\xff\x00\x01", "-", "0x7"):
        machine.write(path, garbage)
        with pytest.raises(HostError) as caught:
            sysfs.topology(str(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path}{path}: {said}")


@pytest.mark.parametrize("text", ["Node 0 MemTotal: many kB", "kB", "Node kB", "Node 0 MemFree: 0x1 kB"])
def test_garbage_in_meminfo(tmp_path: Path, text: str) -> None:
    machines.desktop(str(tmp_path))
    path = f"{NODE}/node0/meminfo"
    machines.Machine(str(tmp_path), range(8)).write(path, text)
    for read in (sysfs.topology, lambda root: sysfs.free_memory(root, frozenset((0,)))):
        with pytest.raises(HostError) as caught:
            read(str(tmp_path))
        assert str(caught.value) == f"{tmp_path}{path}: the kernel's figures {NOT_NUMBERS}"


@pytest.mark.parametrize("text", ["", "\n", "Node 0", "HugePages_Total: x"])
def test_meminfo_that_tells_nothing(tmp_path: Path, text: str) -> None:
    machines.desktop(str(tmp_path))
    (tmp_path / f"{NODE}/node0/meminfo".lstrip("/")).write_text(text)
    assert sysfs.topology(str(tmp_path)).memory == {0: 0}


def test_distances_of_another_number_of_nodes_are_left_out(tmp_path: Path) -> None:
    """A node came between the two files."""
    machines.two_sockets_apart(str(tmp_path))
    machines.Machine(str(tmp_path), range(32)).write(f"{NODE}/node1/distance", "21 10 21")
    found = sysfs.topology(str(tmp_path))
    assert found.distances[1] == {}
    assert (found.distance(1, 0), found.distance(1, 1), found.distance(0, 1)) == (20, 10, 21)


@pytest.mark.parametrize("text", ["", "\0", "(null)", "              (null)", " ", "\0\n"])
def test_ways_to_print_no_nohz_full(tmp_path: Path, text: str) -> None:
    machines.desktop(str(tmp_path))
    machines.Machine(str(tmp_path), range(8)).write(f"{CPU}/nohz_full", text)
    assert sysfs.topology(str(tmp_path)).nohz_full == frozenset()


def test_a_large_host_is_read_in_few_files(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """setup reads them at each start: one list a core, and a few files a cache, package and node."""
    opened: list[str] = []
    reading, listing = files.read, os.listdir

    def read(path: str) -> str:
        opened.append(path)
        return reading(path)

    def listdir(path: Any) -> list[str]:
        opened.append(path)
        return listing(path)

    monkeypatch.setattr(files, "read", read)
    monkeypatch.setattr(os, "listdir", listdir)
    sysfs.topology(large)
    assert len(opened) == len(set(opened)) + 1  # die_id of CPU 0 says whether there are dies at all
    cores, caches, packages, nodes = 512, 64, 8, 8
    assert len(opened) <= cores + 2 * caches + 4 * packages + 3 * nodes + 12
