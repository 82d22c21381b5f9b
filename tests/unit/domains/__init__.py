# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains of libvirt: NAME.xml goes in, expected/NAME.toml must come out, its lists of what is not as it was included.

`python3 -m tests.unit.domains` (make golden) writes what is expected anew; read the diff like code.
"""

from __future__ import annotations

from pathlib import Path

from kvmsup.plan import libvirt

HERE = Path(__file__).parent
CASES = sorted(HERE.glob("*.xml"))


def expected(case: Path) -> Path:
    """The file that `case` must become."""
    return HERE / "expected" / f"{case.stem}.toml"


def imported(case: Path) -> str:
    """The file that it becomes."""
    return libvirt.render(libvirt.convert(case.read_bytes()), case.name)
