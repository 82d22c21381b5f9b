# SPDX-License-Identifier: LGPL-2.1-or-later
"""What check warns of although it can be had: one of each kind, where it stands in the file, and what is none."""

from __future__ import annotations

import pytest

from kvmsup.model import config, unwise
from kvmsup.model.topology import Topology
from tests.unit.hosts import topology

# Two nodes of two cores of two siblings, 0,4 1,5 and 2,6 3,7; 4G each.
HOST = topology(2, 2, 2)
HEAD = '[machine]\ntype = "pc-q35-7.2"\n'
DEDICATED = '[cpu]\nvcpus = 2\n[placement]\ncpus = "dedicated"\n'
PINS = '[placement.vcpu]\n0 = "{}"\n1 = "{}"\n'
MEMORY = '[memory]\nsize = "1G"\n'


def told(text: str, host: Topology | None = HOST) -> list[str]:
    """The warnings, as they are printed."""
    read = config.read_guest("web", "web.toml", (HEAD + text).encode(), host)
    assert not read.document.problems
    read.document.problems.extend(unwise.problems(read.guest, host))
    return [str(one) for one in read.document.diagnostics()]


@pytest.mark.parametrize("key", ['emulator = "1-2"', '[iothread.io0]\ncpus = "2"'])
def test_threads_of_qemu_on_a_vcpus_own_cpu(key: str) -> None:
    name, place = ("placement.emulator", "7:12") if key[0] == "e" else ("iothread.io0.cpus", "8:8")
    (found,) = told(DEDICATED + key + "\n" + PINS.format(2, 3) + MEMORY)
    assert found.startswith(
        f"web.toml:{place}: warning: {name}: CPU 2 is the own CPU of vCPU 0, which waits while QEMU works there\n"
    )
    assert found.endswith("  hint: choose CPUs that are no vCPU's, such as housekeeping ones")


def test_threads_of_qemu_on_a_real_time_vcpus_cpu() -> None:
    (found,) = told(DEDICATED + 'scheduler = "fifo:10"\nemulator = "0,2-3"\n' + PINS.format(2, 3) + MEMORY)
    assert "warning: placement.emulator: CPU 2-3 is a real-time vCPU's, which would starve it: a start is" in found


@pytest.mark.parametrize(
    "text",
    [
        DEDICATED + 'emulator = "0-1"\n' + PINS.format(2, 3) + MEMORY,
        DEDICATED + 'emulator = "0-3"\n' + MEMORY,  # CPUs are chosen elsewhere
        '[cpu]\nvcpus = 2\n[placement]\nemulator = "0-3"\n' + PINS.format("0-3", "0-3") + MEMORY,
    ],
)
def test_threads_of_qemu_beside_vcpus(text: str) -> None:
    assert told(text) == []


def test_a_guest_of_several_nodes_that_sees_one() -> None:
    (found,) = told('[placement]\nnodes = "0-1"\n' + MEMORY)
    assert found == (
        "web.toml:4:9: warning: placement.nodes: 2 nodes: the guest sees one node, and takes memory of the others for"
        ' as near\n  4 | nodes = "0-1"\n    |         ^^^^^'
        "\n  hint: a [numa.N] for each, or the CPUs and memory of one node"
    )
    (found,) = told(DEDICATED + PINS.format(1, 2) + MEMORY)
    assert found.startswith("web.toml:7:1: warning: placement.vcpu: CPUs of node 0-1: the guest sees one node")
    (found,) = told(DEDICATED + PINS.format(1, 2) + MEMORY + 'hugepages = "2M"\n')
    said = "CPUs of node 0-1, but hugepages are reserved on one node: a start is refused\n"
    assert found.startswith(f"web.toml:7:1: warning: placement.vcpu: {said}")


@pytest.mark.parametrize(
    "text",
    [
        '[placement]\nnodes = "0"\n' + MEMORY,
        DEDICATED + PINS.format(2, 3) + MEMORY,
        DEDICATED + PINS.format(1, 2) + MEMORY + '[numa.0]\nvcpus = "0"\n[numa.1]\nvcpus = "1"\n',
    ],
)
def test_a_guest_that_sees_what_there_is(text: str) -> None:
    assert told(text) == []


def test_more_vcpus_than_cpus() -> None:
    (found,) = told("[cpu]\nvcpus = 9\n" + MEMORY)
    assert found.startswith("web.toml:4:9: warning: cpu.vcpus: 9 vCPUs share this host's 8 CPUs, and one that holds a")
    assert found.endswith("  hint: vcpus = 8 or fewer")
    assert told("[cpu]\nvcpus = 8\nmaxcpus = 16\n" + MEMORY) == []


def test_more_memory_than_there_is() -> None:
    (found,) = told('[memory]\nsize = "9G"\n')
    assert found.startswith("web.toml:4:8: warning: memory.size: 9G is more than this host has, 8.0G\n")
    assert told('[memory]\nsize = "8G"\n') == []


def test_of_another_host_nothing_is_known() -> None:
    assert told("[cpu]\nvcpus = 200\n[placement]\n" + '[memory]\nsize = "900G"\n', None) == []
