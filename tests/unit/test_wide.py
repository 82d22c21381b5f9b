# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests with very many vCPUs, and the real QEMU."""

from __future__ import annotations

import re

import pytest

from kvmsup.model import config
from kvmsup.plan import qemu
from tests.unit import real_qemu


def _words(machine: str, cpu: str, option: str) -> str:
    text = f'[machine]\ntype = "{machine}"\naccel = "tcg"\n[memory]\nsize = "64M"\n[cpu]\n{cpu}\n'
    guest = config.read_guest("web", "web.toml", text.encode()).guest
    found = next(words for words in map(list, qemu.options(guest)) if words[0] == [option])
    return "".join(map(str, found[1]))


def test_no_type_of_this_qemu_is_thought_to_have_more_or_fewer() -> None:
    with real_qemu.running() as running, running.connected() as monitor:
        told = {one["name"]: one["cpu-max"] for one in monitor.execute("query-machines")}
    ours = {name: most for name, most in told.items() if re.match(r"pc-(q35|i440fx)-\d+\.\d", name)}
    assert len(ours) > 10
    assert ours == {name: config.most_vcpus(name) for name in ours}


@pytest.mark.parametrize("machine", ["q35", "pc-q35-rhel8.6.0", "pc-q35-noble", "pc-i440fx-noble", "microvm"])
def test_what_is_not_known_is_left_to_qemu(machine: str) -> None:
    assert config.most_vcpus(machine) == config.MOST_VCPUS


@pytest.mark.parametrize(
    ("cpu", "large"),
    [("vcpus = 254", False), ("maxcpus = 255\nvcpus = 1", True), ("sockets = 2\ncores = 127", False)],
)  # fmt: skip
def test_qemu_starts_with_as_many_in_a_socket(cpu: str, large: bool) -> None:
    """QEMU 10 refuses larger sockets without the option; 7.2 takes them either way."""
    machine = _words("pc-q35-7.2", cpu, "-machine").partition(",memory-backend")[0]
    options = _words("pc-q35-7.2", cpu, "-machine").split(",")
    assert machine == "pc-q35-7.2"
    assert ("smbios-entry-point-type=64" in options) == large
    entry = ",smbios-entry-point-type=64" if large else ""
    smp = _words("pc-q35-7.2", cpu, "-smp")
    with real_qemu.running("-smp", smp, machine=machine + entry) as running, running.connected() as monitor:
        assert monitor.execute("query-status")["status"] in ("prelaunch", "paused")
