# SPDX-License-Identifier: LGPL-2.1-or-later
"""bench/RESULTS.md, of which each measurement writes the section between its own two comments."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write(name: str, found: str) -> None:
    """Put `found` into the section of python3 -m bench.`name`. Raises ValueError where there is none."""
    begin, end = f"<!-- {name}: written by python3 -m bench.{name} -->", f"<!-- {name}: end -->"
    text = RESULTS.read_text("utf-8")
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{RESULTS} has no section {begin}")
    RESULTS.write_text(f"{before}{begin}\n\n{found}\n\n{end}{after}", "utf-8")
