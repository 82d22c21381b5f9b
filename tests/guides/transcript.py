# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a guide: which files and commands it has, and whether what a command said is what the guide shows. Pure.

A block is indented by four spaces, or fenced as ```console; other fences are for the eye alone. A block whose first
line is `# /absolute/path` and nothing else is that file, up to a blank line with `# ` behind it. In one that begins
with another `# `, each such line is a command for root's shell, with what it says in the lines below it. There `…`
stands for any text, or alone for any number of lines, and a last line `(exit status 1)` says that the command fails.
Three spaces end a command: what follows is a remark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

ANYTHING = "…"
PROMPT = "# "
_FILE = re.compile(r"# (/\S+)")
_FENCE = re.compile(r"(```+|~~~+)\s*(\S*)\s*")
_STATUS = re.compile(r"\(exit status (\d+)\)")
_NEED = re.compile(r"<!--\s*(\w+): (.*?)\s*-->")
_REMARK = re.compile(r"(?<=\S)\s{3,}\S.*")


@dataclass(frozen=True)
class File:
    """A file that the guide has its reader write."""

    line: int
    path: str
    text: str


@dataclass(frozen=True)
class Command:
    """What the guide has its reader type, and what it says to that; without output it only has to succeed."""

    line: int
    text: str
    output: tuple[str, ...] = ()
    status: int = 0


@dataclass(frozen=True)
class Shown:
    """An indented block that is neither."""

    line: int
    text: str


Step = File | Command | Shown


@dataclass(frozen=True)
class Guide:
    """`needs` is what its host must have, from comments such as <!-- host: isolcpus=2-3 -->."""

    steps: tuple[Step, ...]
    needs: dict[str, str] = field(default_factory=dict)


def read(text: str) -> Guide:
    """All that a guide has, in its order."""
    lines = text.splitlines()
    needs = {found[1]: found[2] for line in lines if (found := _NEED.fullmatch(line))}
    pieces = (piece for line, block in _blocks(lines) for piece in _pieces(line, block))
    return Guide(tuple(step for line, piece in pieces for step in _steps(line, piece)), needs)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Each block without its indentation or fences, and the number of its first line."""
    at = 0
    while at < len(lines):
        end = at + 1
        if fence := _FENCE.fullmatch(lines[at]):
            while end < len(lines) and not lines[end].startswith(fence[1]):
                end += 1
            if fence[2] == "console":
                yield at + 2, list(lines[at + 1 : end])
            end += 1
        elif _indented(lines[at]) and (at == 0 or not lines[at - 1].strip()):
            while end < len(lines) and (_indented(lines[end]) or not lines[end].strip()):
                end += 1
            yield at + 1, [line[4:] for line in lines[at:end]]
        at = end


def _indented(line: str) -> bool:
    return line.startswith("    ") and bool(line.strip())


def _pieces(line: int, block: list[str]) -> Iterator[tuple[int, list[str]]]:
    """A block parted at each prompt that stands behind a blank line: to Markdown, neighbours are one block."""
    prompts = [at for at in range(1, len(block)) if block[at].startswith(PROMPT) and not block[at - 1].strip()]
    for start, end in zip([0, *prompts], [*prompts, len(block)], strict=True):
        yield line + start, block[start:end]


def _steps(line: int, block: list[str]) -> Iterator[Step]:
    if file := _FILE.fullmatch(block[0]):
        yield File(line, file[1], "\n".join(_without_end(block[1:])) + "\n")
    elif block[0].startswith(PROMPT):
        starts = [at for at, text in enumerate(block) if _is_command(block, at)]
        for start, end in zip(starts, [*starts[1:], len(block)], strict=True):
            yield _command(line + start, block[start:end])
    else:
        yield Shown(line, "\n".join(_without_end(block)))


def _is_command(block: Sequence[str], at: int) -> bool:
    return block[at].startswith(PROMPT) and not (at and block[at - 1].endswith("\\"))


def _command(line: int, lines: Sequence[str]) -> Command:
    words = next(at for at, text in enumerate(lines) if not text.endswith("\\") or at == len(lines) - 1) + 1
    text = "\n".join(lines[:words]).removeprefix(PROMPT)
    output = _without_end(lines[words:])
    status = _STATUS.fullmatch(output[-1]) if output else None
    if status:
        output = _without_end(output[:-1])
    if words == 1:
        text = _REMARK.sub("", text).rstrip()
    return Command(line, text, tuple(output), int(status[1]) if status else 0)


def _without_end(lines: Sequence[str]) -> list[str]:
    """Without the blank lines at the end."""
    kept = list(lines)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept


def missing(expected: Sequence[str], said: str) -> str | None:
    """The first line of `expected` that is not in what was said where it should be; None if all is as expected."""
    actual = _without_end([_plain(line) for line in said.splitlines()])
    parts: list[list[str]] = [[]]
    for line in expected:
        if line.strip() == ANYTHING:
            parts.append([])
        else:
            parts[-1].append(line)
    if not parts[0] and len(parts) == 1:
        return None
    return _missing(parts, actual)


def _missing(parts: Sequence[Sequence[str]], actual: Sequence[str]) -> str | None:
    """Between two parts are any lines; before the first and behind the last one there is none."""
    first, *others = parts
    if wrong := _first_wrong(first, actual):
        return wrong
    at = len(first)
    if not others:
        return None if at == len(actual) else f"no more, but: {actual[at]}"
    for part in others[:-1]:
        found = next((start for start in range(at, len(actual)) if not _first_wrong(part, actual[start:])), None)
        if found is None:
            return _first_nowhere(part, actual[at:])
        at = found + len(part)
    last = others[-1]
    rest = actual[max(at, len(actual) - len(last)) :]
    return _first_wrong(last, rest)


def _first_wrong(part: Sequence[str], actual: Sequence[str]) -> str | None:
    for at, line in enumerate(part):
        if at >= len(actual) or not _is(line, actual[at]):
            return line
    return None


def _first_nowhere(part: Sequence[str], actual: Sequence[str]) -> str:
    """The first line of a part that is nowhere, else the first: all lines are there, but not together."""
    return next((line for line in part if not any(_is(line, one) for one in actual)), part[0])


def _is(line: str, actual: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in _plain(line).split(ANYTHING))
    return re.fullmatch(pattern, actual) is not None


def _plain(line: str) -> str:
    """Columns are as wide as their widest cell, so that runs of blanks are one."""
    return re.sub(r"\s+", " ", line).rstrip()
