# SPDX-License-Identifier: LGPL-2.1-or-later
"""One finding about the host: what was looked at, how it stands, and what would put it right."""

from __future__ import annotations

from kvmsup.records import NamedTuple

OK, WARN, FAIL, UNKNOWN = VERDICTS = ("ok", "warn", "fail", "unknown")


class Finding(NamedTuple):
    """`told` says what was seen. `fix` says what to do, a line each: commands for root's shell, or words.

    Only warn and fail need a fix. unknown is what could not be read, and is never taken for good.
    """

    area: str
    what: str
    verdict: str
    told: str
    fix: str = ""


def ok(what: str, told: str) -> Finding:
    """As it should be. The area is put in by who collects, here and below."""
    return Finding("", what, OK, told)


def warn(what: str, told: str, fix: str) -> Finding:
    """Guests run, but not as well or as safely as they could."""
    return Finding("", what, WARN, told, fix)


def fail(what: str, told: str, fix: str) -> Finding:
    """Guests do not run, or not as they are promised to."""
    return Finding("", what, FAIL, told, fix)


def unknown(what: str, told: str, fix: str = "") -> Finding:
    """It could not be read; `fix` is then how it could be."""
    return Finding("", what, UNKNOWN, told, fix)


def number(text: str | None) -> int | None:
    """The number that a file of the kernel holds; None where it holds something else."""
    told = (text or "").strip()
    return int(told) if told.isascii() and told.isdigit() and len(told) < 20 else None


def switch(text: str | None) -> bool | None:
    """A module's switch: Y and N, or 1 and 0 where it is an integer; None where it is neither."""
    return {"Y": True, "1": True, "N": False, "0": False}.get((text or "").strip())


def values(command_line: str | None, name: str) -> list[str]:
    """What `name`= is set to on the kernel's command line, - and _ being the same (kernel-parameters.rst)."""
    words = (word.partition("=") for word in (command_line or "").split())
    return [value for word, _, value in words if word.replace("-", "_") == name.replace("-", "_")]
