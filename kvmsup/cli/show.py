# SPDX-License-Identifier: LGPL-2.1-or-later
"""How listings look: tables that line up, colour on terminals only, and JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kvmsup import cpulist, sizes
from kvmsup.effects import files
from kvmsup.model.claim import Claim
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_COLOURS = {
    "active": "32",
    "failed": "31",
    "activating": "33",
    "deactivating": "33",
    "ok": "32",
    "drift": "31",
    "warn": "33",
    "fail": "31",
    "unknown": "36",
    "usable": "32",
    "unusable": "31",
}


def on_terminal() -> bool:
    """Whether standard output is a terminal. There is none at all where the descriptor was closed."""
    return bool(sys.stdout) and sys.stdout.isatty()


def coloured() -> bool:
    """Colour is for terminals, unless NO_COLOR is there and not empty (no-color.org)."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(word: str, text: str = "") -> str:
    """`text` (or the word itself) in the colour of what `word` says."""
    colour = _COLOURS.get(word)
    return f"\x1b[{colour}m{text or word}\x1b[0m" if colour and coloured() else text or word


# Those that are readable on black and on white, and far apart: bold keeps them apart from what `paint` says.
_TINTS = ("1;34", "1;35", "1;36", "1;33", "1;32", "1;31")


def tinted(place: int, text: str) -> str:
    """`text` in the colour of the `place`-th of several alike things; after six the colours come again."""
    return f"\x1b[{_TINTS[place % len(_TINTS)]}m{text}\x1b[0m" if coloured() else text


def dimmed(text: str) -> str:
    """`text` that matters less."""
    return f"\x1b[2m{text}\x1b[0m" if coloured() else text


def columns() -> int:
    """How wide the terminal is, or COLUMNS says; 80 where there is neither. As shutil has it, which imports a lot."""
    told = os.environ.get("COLUMNS", "")
    if len(told) < 6 and told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (AttributeError, OSError, ValueError):  # no standard output, or none that is a terminal
        return 80


def folded(text: str) -> list[str]:
    """`text` in the lines that a terminal has room for, parted between its parts; in one line elsewhere."""
    lines = [""]
    room = columns() if on_terminal() else len(text)
    for part in text.split(_BETWEEN):
        if lines[-1] and len(lines[-1]) + len(_BETWEEN) + len(part) > room:
            lines.append(f"  {part}")
        else:
            lines[-1] += f"{_BETWEEN}{part}" if lines[-1] else part
    return lines


_BETWEEN = " · "


def amount(size: int) -> str:
    """`size` bytes with three digits or four, in the largest unit that leaves them."""
    unit = next((unit for unit in ("T", "G", "M", "K") if size >= 10 * sizes.UNITS[unit]), "")
    return f"{size // sizes.UNITS[unit] if unit else size}{unit}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns; an empty cell is a dash, and what a file's name may hold does not reach a terminal."""
    cells = [list(heads), *([files.printable(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = []
    for row in cells:
        padded = [paint(cell, cell.ljust(width)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def placement(claim: Claim) -> dict[str, Any]:
    """What a guest holds, or would, for programs: lists of CPUs and nodes as text, hugepages by node."""
    return {
        "kind": "dedicated" if claim.dedicated else "shared",
        "vcpu": {str(index): cpulist.render(cpus) for index, cpus in enumerate(claim.vcpu)},
        "idle": cpulist.render(claim.idle),
        "emulator": cpulist.render(claim.emulator),
        "iothread": {name: cpulist.render(cpus) for name, cpus in claim.iothread.items()},
        "nodes": cpulist.render(claim.nodes),
        "cells": list(claim.cells),
        "pages": {str(node): count for node, count in claim.pages.items()},
        "scheduler": claim.scheduler or None,
    }


def balloon(report: dict[str, Any]) -> str:
    """One line on what observe.balloon has found."""
    kind = "automatic" if report["automatic"] else "by hand"
    knows = {
        "answers": f", the guest has {sizes.mebibytes(report['available'] or 0)} available",
        "silent": ", no balloon driver in the guest answers",
        "unasked": "",
    }[report["driver"]]
    actual, size, least = (sizes.mebibytes(report[key]) for key in ("actual", "size", "min"))
    return f"{actual} of {size} (min {least}, {kind}){knows}"


def other_qemu(found: dict[str, Any]) -> str:
    """`older QEMU: restart to use 10.0.13`."""
    return f"{found['differs']} QEMU: restart to use {found['installed'] or 'the installed one'}"


def as_json(value: object) -> None:
    """Print `value` for programs. What is not ASCII is escaped: a file's name may not even be UTF-8."""
    import json

    print(json.dumps(value, indent=2))


class Look(NamedTuple):
    """What a verb has found at one moment: for programs, for people, and as an exit status."""

    value: dict[str, Any]
    lines: Sequence[str]
    status: int = 0


def once(look: Look, *, json: bool) -> int:
    """Print `look`; returns its exit status."""
    if json:
        as_json(look.value)
    else:
        print("".join(f"{line}\n" for line in look.lines), end="")
    return look.status
