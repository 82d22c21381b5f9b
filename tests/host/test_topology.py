# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host read right: kvmsup topology beside lscpu and numactl, with all CPUs, with one offline, with guests."""

from __future__ import annotations

from typing import Any

import pytest

from kvmsup import cpulist
from tests.host import guests
from tests.lab.host import Host

OWNER = guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "1"')


def cpus(picture: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Every CPU of the picture by its number, with its node, package and core (its siblings) beside what it tells."""
    found: dict[int, dict[str, Any]] = {}
    for node in picture["nodes"]:
        for cache in node["caches"]:
            for core in cache["cores"]:
                siblings = [cpu["cpu"] for cpu in core["cpus"]]
                for cpu in core["cpus"]:
                    assert cpu["cpu"] not in found
                    place = {"node": node["node"], "package": cache["package"], "siblings": siblings}
                    found[cpu["cpu"]] = cpu | place
    return found


def lscpu(host: Host) -> list[tuple[int, ...]]:
    """(CPU, core, socket, node) of each online CPU."""
    lines = host.run("lscpu -p=CPU,CORE,SOCKET,NODE").stdout.splitlines()
    return [tuple(map(int, line.split(","))) for line in lines if line[0] != "#"]


def numactl(host: Host) -> tuple[dict[int, str], dict[int, str], dict[int, int]]:
    """By node: its CPUs and its distances as words, and its memory in MiB."""
    lines = [line.split() for line in host.run("numactl --hardware").stdout.splitlines()]
    nodes = [words for words in lines if words[0] == "node" and words[1].isdecimal()]
    told = {what: {int(words[1]): words[3:] for words in nodes if words[2] == what} for what in ("cpus:", "size:")}
    far = {int(words[0][:-1]): " ".join(words[1:]) for words in lines if words[0][:-1].isdecimal()}
    cpus_there = {node: " ".join(words) for node, words in told["cpus:"].items()}
    return cpus_there, far, {node: int(words[0]) for node, words in told["size:"].items()}


def agrees_with_numactl(host: Host) -> None:
    picture = guests.kvmsup(host, "topology")
    nodes = {node["node"]: node for node in picture["nodes"]}
    there = {node: sorted(number for number, cpu in cpus(picture).items() if cpu["node"] == node) for node in nodes}
    distances = {node: " ".join(map(str, one["distances"])) for node, one in nodes.items()}
    memory = {node: one["memory"] >> 20 for node, one in nodes.items()}
    assert ({node: " ".join(map(str, found)) for node, found in there.items()}, distances, memory) == numactl(host)


def agrees_with_lscpu(host: Host) -> None:
    found, told = cpus(guests.kvmsup(host, "topology")), lscpu(host)
    assert sorted(found) == [cpu for cpu, *_ in told]
    for cpu, core, socket, node in told:
        assert (found[cpu]["package"], found[cpu]["node"]) == (socket, node)
        assert found[cpu]["siblings"] == [other for other, same, *_ in told if same == core]


def test_it_agrees_with_lscpu_and_numactl(host: Host) -> None:
    agrees_with_lscpu(host)
    picture = guests.kvmsup(host, "topology")
    nodes = {node["node"]: node for node in picture["nodes"]}
    assert list(nodes) == [0, 1]
    assert picture["offline"] == ""
    assert picture["guests"] == []
    agrees_with_numactl(host)
    for node in nodes.values():
        assert 0 < node["free"] < node["memory"]
    roles = {number: cpu["role"] for number, cpu in cpus(picture).items()}
    assert roles == {0: "housekeeping", 1: "housekeeping"} | dict.fromkeys(range(2, 8), "free")


@pytest.mark.parametrize("offline", [5])
def test_a_cpu_that_is_offline_is_told_as_such(host: Host, offline: int) -> None:
    switch = f"/sys/devices/system/cpu/cpu{offline}/online"
    host.run(f"echo 0 >{switch}")
    try:
        agrees_with_lscpu(host)
        agrees_with_numactl(host)
        picture = guests.kvmsup(host, "topology")
        assert picture["offline"] == str(offline)
        assert cpus(picture)[4]["siblings"] == [4]
        assert f"offline  {offline}" in host.run("kvmsup topology").stdout.splitlines()
    finally:
        host.run(f"echo 1 >{switch}")
    agrees_with_lscpu(host)


def test_it_agrees_with_what_runs(host: Host) -> None:
    guests.configure(host, {"owner": OWNER, "crowd": guests.SHARED})
    guests.start(host, "owner")
    guests.start(host, "crowd")
    picture = guests.kvmsup(host, "topology")
    found, claim = cpus(picture), guests.claim(host, "owner")
    owned = [int(cpu) for cpu in claim["VCPU_CPUS"].split()]
    assert {number for number, cpu in found.items() if cpu["guest"]} == set(owned)
    pinned = guests.allowed(host, guests.pid(host, "owner"))
    for index, cpu in enumerate(owned):
        assert (found[cpu]["guest"], found[cpu]["role"], found[cpu]["vcpus"]) == ("owner", "vcpu", [index])
        assert pinned[f"CPU {index}/KVM"] == str(cpu)
    for name in ("owner", "crowd"):
        threads = guests.allowed(host, guests.pid(host, name))
        emulator = [number for number, cpu in found.items() if name in cpu["emulators"]]
        assert threads["qemu-system-x86"] == cpulist.render(emulator)
    shared = guests.allowed(host, guests.pid(host, "crowd"))["CPU 0/KVM"]
    assert shared == cpulist.render(number for number, cpu in found.items() if cpu["shared"] == ["crowd"])
    told = {one["name"]: (one["active"], one["placement"], one["cpus"]) for one in picture["guests"]}
    assert told == {"owner": ("active", "dedicated", cpulist.render(owned)), "crowd": ("active", "shared", shared)}
    assert [node["guests"] for node in picture["nodes"]] == [[], ["owner"]]
    pool = picture["nodes"][1]["hugepages"][0]
    assert (pool["page_size"], pool["total"]) == (2 << 20, 32)

    host.run(
        "kvmsup topology --svg /tmp/host.svg && python3 -c 'import xml.dom.minidom as x; x.parse(\"/tmp/host.svg\")'"
    )
    drawn = host.run("COLUMNS=60 kvmsup topology").stdout.splitlines()
    assert max(map(len, drawn)) <= 60
    assert "A owner" in drawn
    assert f"sh crowd: shared, on CPU {shared}" in drawn
    guests.kill(host, "owner")
    guests.kill(host, "crowd")
    assert guests.leftovers(host) == []
