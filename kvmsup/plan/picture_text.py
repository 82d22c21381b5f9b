# SPDX-License-Identifier: LGPL-2.1-or-later
"""A picture of a host for a terminal: a frame is a cache, a box in it a core, SMT siblings one above the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from kvmsup import cpulist
from kvmsup.plan import picture, picture_words
from kvmsup.plan.picture import Cache, Core, Cpu, Picture, Tenant
from kvmsup.records import NamedTuple

Paint = Callable[[str, str], str]  # (a guest's name or a role, text) → the text in its colour
_GAP = "  "


class Style(NamedTuple):
    """The characters of frames: across, down, and the corners and joints by row (top, between, bottom)."""

    across: str
    down: str
    top: str
    between: str
    bottom: str


UNICODE = Style("─", "│", "┌┬┐", "├┼┤", "└┴┘")
ASCII = Style("-", "|", "+++", "+++", "+++")


class _Cells(NamedTuple):
    """How every CPU is written: as wide as the widest of the host."""

    number: int
    mark: int
    flags: int
    places: Mapping[str, int]

    @property
    def width(self) -> int:
        return self.number + (1 + self.mark if self.mark else 0) + (1 + self.flags if self.flags else 0)

    def text(self, cpu: Cpu, paint: Paint) -> str:
        mark = f" {picture.mark(cpu, self.places):{self.mark}}" if self.mark else ""
        text = paint(cpu.guest or cpu.role, f"{cpu.number:{self.number}}{mark}")
        return text + (f" {_flags(cpu):{self.flags}}" if self.flags else "")


def render(drawn: Picture, width: int, style: Style, paint: Paint) -> list[str]:
    """Lines of at most `width` characters, as far as one core fits; what `paint` adds is not counted."""
    cells = _cells(drawn)
    lines: list[str] = []
    for node in drawn.nodes:
        lines += _flow(picture_words.node(node, drawn), width, _GAP)
        blocks = [
            _block(cache, picture_words.cache(cache, node, drawn), cells, width, style, paint) for cache in node.caches
        ]
        lines += [*_beside(blocks, width), ""]
    if drawn.offline:
        lines += [*_flow([f"offline  {cpulist.render(drawn.offline)}"], width), ""]
    return lines + _legend(drawn, cells, width, paint)


def _cells(drawn: Picture) -> _Cells:
    cpus, places = picture.cpus_of(drawn), picture.owners(drawn)
    return _Cells(
        number=max((len(str(cpu.number)) for cpu in cpus), default=1),
        mark=max((len(picture.mark(cpu, places)) for cpu in cpus), default=0),
        flags=max((len(_flags(cpu)) for cpu in cpus), default=0),
        places=places,
    )


def _flags(cpu: Cpu) -> str:
    return ("i" if cpu.isolated else "") + ("n" if cpu.nohz_full else "")


def _flow(parts: Iterable[str], width: int, indent: str = "") -> list[str]:
    """The parts one after the other, in as many lines as they need; only a part too long for a line is broken.

    `indent` begins the lines after the first.
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines += picture_words.broken((indent if lines else "") + part, width, _GAP)
    return lines


def _block(cache: Cache, title: str, cells: _Cells, width: int, style: Style, paint: Paint) -> list[tuple[int, str]]:
    """A frame's lines, each with its width: what is painted is longer than it looks."""
    box = cells.width + 3
    columns = picture.rows_of(max(_by_kind(cache).values()), (width - 1) // box)
    lines: list[tuple[int, str]] = []
    for kind, cores in groupby(cache.cores, key=lambda core: core.kind):
        found = list(cores)
        for first in range(0, len(found), columns):
            corners = style.between if lines else style.top
            words = [title if not lines else "", kind if not first else ""]
            lines.append(_rule(columns, cells, style, corners, " ".join(filter(None, words))))
            lines += _boxes(found[first : first + columns], columns, cells, style, paint)
    return [*lines, _rule(columns, cells, style, style.bottom, "")]


def _by_kind(cache: Cache) -> dict[str, int]:
    kinds = [core.kind for core in cache.cores]
    return {kind: kinds.count(kind) for kind in kinds}


def _rule(columns: int, cells: _Cells, style: Style, corners: str, title: str) -> tuple[int, str]:
    left, joint, right = corners[0], corners[1], corners[2]
    line = left + joint.join([style.across * (cells.width + 2)] * columns) + right
    said = f" {title} " if title else ""
    if said and len(said) + 3 <= len(line):
        line = line[:2] + said + line[2 + len(said) :]
    return len(line), line


def _boxes(cores: Sequence[Core], columns: int, cells: _Cells, style: Style, paint: Paint) -> list[tuple[int, str]]:
    """A row of cores, as high as the one with the most siblings."""
    width = columns * (cells.width + 3) + 1
    lines = []
    for thread in range(max(len(core.cpus) for core in cores)):
        texts = [
            cells.text(core.cpus[thread], paint) if thread < len(core.cpus) else " " * cells.width for core in cores
        ]
        texts += [" " * cells.width] * (columns - len(cores))
        lines.append((width, f"{style.down} {f' {style.down} '.join(texts)} {style.down}"))
    return lines


def _beside(blocks: Sequence[list[tuple[int, str]]], width: int) -> list[str]:
    """Frames side by side, as many as fit, those of a row made equally high with nothing below."""
    lines: list[str] = []
    most = max((block[0][0] for block in blocks), default=1)
    across = picture.rows_of(len(blocks), (width + len(_GAP)) // (most + len(_GAP)))
    for first in range(0, len(blocks), across):
        row = blocks[first : first + across]
        for index in range(max(map(len, row))):
            texts = [block[index][1] if index < len(block) else " " * block[0][0] for block in row]
            lines.append(_GAP.join(texts).rstrip())
    return lines


_MARKS = {picture.HOUSEKEEPING: "hk", picture.EMULATOR: "em", picture.SHARED: "sh", picture.FREE: ""}
_FLAGS = {"isolated": "i", "nohz_full": "n"}


def _legend(drawn: Picture, cells: _Cells, width: int, paint: Paint) -> list[str]:
    """What is seen above and nothing else; a guest is painted as its CPUs are."""
    own = [guest for guest in drawn.guests if guest.dedicated]
    names = [f"{picture.letters(cells.places[guest.name])} {picture_words.guest(guest)}" for guest in own]
    lines = _flow_painted(list(zip(names, (guest.name for guest in own), strict=True)), width, paint)
    if own:
        lines += _flow([_example(own[0], drawn, cells)], width)
    for guest in drawn.guests:
        if not guest.dedicated:
            lines += [paint(picture.SHARED, line) for line in _flow([f"sh {picture_words.guest(guest)}"], width)]
    roles = picture_words.roles(drawn)
    roles.pop(picture.IDLE, None)
    known = [f"{_MARKS[role]} {text}" if _MARKS[role] else f"no mark: {text}" for role, text in roles.items()]
    known += [f"{_FLAGS[flag]} {text}" for flag, text in picture_words.flags(drawn).items()]
    return [*lines, *_flow(known, width), *_flow([picture_words.shape(drawn)], width)]


def _flow_painted(parts: Sequence[tuple[str, str]], width: int, paint: Paint) -> list[str]:
    """As `_flow`, with parts of (text, whose): each is painted, which takes no room."""
    lines: list[str] = []
    used = width
    for text, whose in parts:
        if used + len(_GAP) + len(text) <= width:
            lines[-1] += _GAP + paint(whose, text)
            used += len(_GAP) + len(text)
        else:
            lines.append(paint(whose, text))
            used = len(text)
    return lines


def _example(guest: Tenant, drawn: Picture, cells: _Cells) -> str:
    """How the marks of guests with CPUs of their own are to be read, by one of them."""
    letters = picture.letters(cells.places[guest.name])
    idle = any(cpu.role == picture.IDLE for cpu in picture.cpus_of(drawn))
    beside = f", {letters}- kept idle beside its vCPUs" if idle else ""
    return f"{letters}0 is vCPU 0 of {guest.name}, which owns its CPUs{beside}"
