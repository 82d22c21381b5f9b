# SPDX-License-Identifier: LGPL-2.1-or-later
"""AllowedCPUs= of a unit as `systemctl set-property --runtime` keeps it, which a unit's own files do not tell."""

from __future__ import annotations

import os

from kvmsup import cpulist
from kvmsup.effects import files


def _path(root: str, unit: str) -> str:
    """Where `systemctl set-property --runtime` keeps the value (systemd.unit(5), "Unit File Load Path").

    Scopes have no files of their own (src/core/unit.c, unit_drop_in_dir).
    """
    place = "transient" if unit.endswith(".scope") else "system.control"
    return f"{root}/run/systemd/{place}/{unit}.d/50-AllowedCPUs.conf"


def forget(root: str, unit: str) -> None:
    """Remove the value that set-property keeps, and nothing else: `systemctl revert` would take the user's own too."""
    files.remove(_path(root, unit))
    try:
        os.rmdir(os.path.dirname(_path(root, unit)))
    except OSError:
        pass  # there are other properties of somebody else


def kept(root: str, unit: str) -> frozenset[int] | None:
    """The value that set-property keeps, None where there is none."""
    try:
        text = files.read(_path(root, unit))
    except FileNotFoundError:
        return None
    # An empty assignment, which resets, and then the value.
    values = [line.partition("=")[2] for line in text.splitlines() if line.startswith("AllowedCPUs=")]
    return parse(values[-1]) if values else None


def parse(told: str) -> frozenset[int]:
    """The CPUs in what systemd writes: ranges with spaces between."""
    return cpulist.parse(told.replace(" ", ","))
