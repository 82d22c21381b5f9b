# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything kvmsup can say about what went wrong. Parsers and effects raise, entry points print.

A traceback is always a bug of kvmsup: every failure that a user can cause has a sentence here.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvmsup.records import NamedTuple


def visible(text: str) -> str:
    """`text` with ? for what a terminal could take for an order; lines and tabs stay. Names of files may hold it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


class KvmsupError(Exception):
    """A failure told to the user: what happened and, in `hint`, what to do about it.

    `catalog` names its entry in the journal's catalog (kvmsup.catalog), where it has one of its own.
    """

    catalog = ""

    def __init__(self, what: str, hint: str = "", catalog: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        if catalog:
            self.catalog = catalog

    def __str__(self) -> str:
        return visible(f"{self.what}\n  hint: {self.hint}" if self.hint else self.what)


class HostError(KvmsupError):
    """The host cannot do what was asked: a file of the kernel, a device, a tool."""


class Refusal(KvmsupError):
    """The request is sound and the host is sound, but the resource is taken or too small."""


class QmpError(KvmsupError):
    """QEMU answered with an error, broke the protocol, or went away."""


class Diagnostic(NamedTuple):
    """One finding in one configuration file.

    `line` and `column` count from 1, as editors do; 0 means that the finding is about the whole file.
    `source` is the text of that line and `width` how many of its characters the finding is about.
    """

    file: str
    line: int
    column: int
    what: str
    hint: str = ""
    source: str = ""
    width: int = 1
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        said = self.what if self.severity == "error" else f"{self.severity}: {self.what}"
        lines = [f"{where}: {said}"]
        if self.line and self.source:
            number = str(self.line)
            indent = "".join("\t" if char == "\t" else " " for char in self.source[: self.column - 1])
            lines.append(f"  {number} | {self.source}")
            lines.append(f"  {' ' * len(number)} | {indent}{'^' * self.width}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return visible("\n".join(lines))


class ConfigError(KvmsupError):
    """A configuration file is wrong; `diagnostics` holds every finding, sorted by place."""

    catalog = "file-wrong"

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(diagnostics, key=lambda found: (found.file, found.line, found.column)))
        super().__init__("\n".join(map(str, self.diagnostics)))
