# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup host: whether this host is fit for guests, and what would make it so."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from kvmsup.cli import show
from kvmsup.effects import facts
from kvmsup.plan import soundness
from kvmsup.plan.finding import FAIL, UNKNOWN, VERDICTS, Finding
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

_WIDEST = 100


def run(asked: argparse.Namespace) -> int:
    """Print the findings; 1 when any of them is a failure."""
    found = soundness.findings(facts.read(""), facts.programs())
    wrong = any(one.verdict == FAIL for one in found)
    if asked.json:
        show.as_json({"ok": not wrong, "findings": [one._asdict() for one in found]})
    else:
        for line in lines(found, min(show.columns(), _WIDEST)):
            print(line)
    return 1 if wrong else 0


def lines(found: Sequence[Finding], width: int) -> Iterator[str]:
    """The findings by area, `width` columns wide, but for fixes: those are for copying and stay whole."""
    column = max((len(one.what) for one in found), default=0)
    area = ""
    for one in found:
        if one.area != area:
            yield from (["", one.area] if area else [one.area])
            area = one.area
        yield from _entry(one, column, width)
    counts = Counter(one.verdict for one in found)
    yield ""
    yield ", ".join(f"{counts[verdict]} {show.paint(verdict)}" for verdict in VERDICTS if counts[verdict])


def _entry(one: Finding, column: int, width: int) -> Iterator[str]:
    verdict = show.paint(one.verdict, one.verdict.ljust(max(map(len, VERDICTS))))
    indent = " " * (2 + max(map(len, VERDICTS)) + 2 + column + 2)
    told = textwrap.wrap(one.told, max(width - len(indent), 30)) or [""]
    yield f"  {verdict}  {one.what.ljust(column)}  {told[0]}".rstrip()
    for line in told[1:]:
        yield f"{indent}{line}"
    head = "try: " if one.verdict == UNKNOWN else "fix: "
    for number, line in enumerate(one.fix.splitlines()):
        yield f"{indent[: -column - 2]}{' ' * len(head) if number else head}{line}"
