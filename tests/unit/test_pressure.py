# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's memory and its stalls, from the kernel's files and from bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmsup.effects import pressure
from kvmsup.errors import HostError
from kvmsup.model.pressure import HostMemory, Stall
from tests.unit import trees

MEMINFO = """MemTotal:        6093020 kB
MemFree:         5390144 kB
MemAvailable:    5494212 kB
SwapTotal:          1024 kB
SwapFree:            512 kB
HugePages_Total:       4
Hugepagesize:       2048 kB
Hugetlb:            8192 kB
"""
PSI = """some avg10=12.34 avg60=0.10 avg300=0.00 total=1234
full avg10=1.50 avg60=0.00 avg300=0.00 total=234
"""


def host(tmp_path: Path, meminfo: str = MEMINFO, psi: str = PSI) -> str:
    trees.write(str(tmp_path), "/proc/meminfo", meminfo)
    if psi:
        trees.write(str(tmp_path), "/proc/pressure/memory", psi)
    return str(tmp_path)


def test_it_is_read(tmp_path: Path) -> None:
    found = pressure.read(host(tmp_path))
    kib = 1024
    assert found == HostMemory(6093020 * kib, 5494212 * kib, 1024 * kib, 512 * kib, 8192 * kib, Stall(12.34, 1.5))


@pytest.mark.parametrize("psi", ["", "some", "some avg10=x\nfull avg10=0", "some avg10=1.0 avg60=0", "\n\n"])
def test_no_account_of_stalls_is_told_as_none(tmp_path: Path, psi: str) -> None:
    assert pressure.read(host(tmp_path, psi=psi)).stall is None


def test_a_wrong_meminfo_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="meminfo: cannot be read: No such file"):
        pressure.read(str(tmp_path))
    with pytest.raises(HostError, match="meminfo: has no MemAvailable"):
        pressure.read(host(tmp_path, meminfo="MemTotal: 1 kB\nMemAvailable: many kB\n"))


def test_of_this_machine() -> None:
    found = pressure.read("")
    assert 0 < found.available < found.total
