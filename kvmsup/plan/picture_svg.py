# SPDX-License-Identifier: LGPL-2.1-or-later
"""A picture of a host as one SVG file that needs nothing else: a box is a core, a frame a cache, a panel a node.

Everything is drawn at its own origin as a `_Block` and moved by whoever it is part of. The colours are Paul Tol's
"light" scheme (personal.sron.nl/~pault), which is far apart for colour-blind eyes too and carries dark text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from kvmsup import cpulist
from kvmsup.plan import picture, picture_words
from kvmsup.plan.picture import Cache, Core, Cpu, Node, Picture
from kvmsup.records import NamedTuple

_TINTS = ("#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#44bb99", "#bbcc33", "#99ddff", "#aaaa00")
_INK, _FAINT, _LINE = "#1a1a1a", "#555555", "#8a8f98"
# Up to here a CPU has room for its guest's name.
_FEW_CPUS, _LONGEST_LABEL = 64, 14
# How wide the picture of so many CPUs may be, in pixels.
_PAGES = ((_FEW_CPUS, 1000), (512, 1400), (1 << 20, 2500))
_HEADER = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    " font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" fill=\"{ink}\">\n"
    "<title>{title}</title>\n"
    '<defs><pattern id="shared" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="7" height="7" fill="#fff"/><rect width="3" height="7" fill="#e3e6ea"/></pattern></defs>\n'
    '<rect width="100%" height="100%" fill="#ffffff"/>\n'
)


class _Block(NamedTuple):
    width: float
    height: float
    svg: str


class _Look(NamedTuple):
    """How a CPU is drawn on this host: sizes in pixels, and the text beside its number."""

    width: float
    height: float
    font: float
    page: float
    named: bool
    label: Callable[[Cpu], str]
    places: Mapping[str, int]


def render(drawn: Picture) -> str:
    """The file's text."""
    look = _look(drawn)
    nodes = [_node(node, drawn, look) for node in drawn.nodes]
    parts = [_flow(nodes, look.page, 16)]
    if drawn.offline:
        said = f"offline: CPU {cpulist.render(drawn.offline)}"
        parts.append(_paragraph(said, look.page))
    whole = _column([*parts, _legend(drawn, look, max(parts[0].width, 480))], 18)
    width, height = whole.width + 32, whole.height + 32
    title = _escaped(picture_words.host(drawn))
    head = _HEADER.format(width=round(width), height=round(height), ink=_INK, title=title)
    return f"{head}{_moved(whole, 16, 16)}\n</svg>\n"


def _look(drawn: Picture) -> _Look:
    cpus, places = picture.cpus_of(drawn), picture.owners(drawn)

    def named(cpu: Cpu) -> str:
        words = {picture.HOUSEKEEPING: "host", picture.EMULATOR: "emulator", picture.SHARED: "shared"}
        if cpu.role == picture.VCPU:
            return f"{cpu.guest} {','.join(map(str, cpu.vcpus[:2]))}"
        return f"{cpu.guest} idle" if cpu.role == picture.IDLE else words.get(cpu.role, "")

    def marked(cpu: Cpu) -> str:
        return picture.mark(cpu, places)

    few = len(cpus) <= _FEW_CPUS and max((len(named(cpu)) for cpu in cpus), default=0) <= _LONGEST_LABEL
    label = named if few else marked
    font = 12.0 if len(cpus) <= _FEW_CPUS else 10.0
    number = max((len(str(cpu.number)) for cpu in cpus), default=1)
    longest = max((len(label(cpu)) for cpu in cpus), default=0)
    width = round((number + longest) * font * 0.62 + 24)
    page = next(width for most, width in _PAGES if len(cpus) <= most)
    return _Look(width, round(font * 2.1), font, page, few, label, places)


def _escaped(text: str) -> str:
    """For SVG's text and attributes: names of guests are tame today, and need not be tomorrow."""
    for plain, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(plain, entity)
    return text


def _moved(block: _Block, x: float, y: float) -> str:
    return f'<g transform="translate({x:g} {y:g})">{block.svg}</g>' if x or y else block.svg


def _text(x: float, y: float, size: float, text: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{more}>{_escaped(text)}</text>'


def _rect(width: float, height: float, fill: str, stroke: str, more: str = "") -> str:
    return f'<rect width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"{more}/>'


def _column(blocks: Sequence[_Block], gap: float) -> _Block:
    """One below the other."""
    moved, y = [], 0.0
    for block in blocks:
        moved.append(_moved(block, 0, y))
        y += block.height + gap
    return _Block(max((block.width for block in blocks), default=0), max(0.0, y - gap), "\n".join(moved))


def _row(blocks: Sequence[_Block], gap: float) -> _Block:
    """One beside the other."""
    moved, x = [], 0.0
    for block in blocks:
        moved.append(_moved(block, x, 0))
        x += block.width + gap
    return _Block(max(0.0, x - gap), max((block.height for block in blocks), default=0), "\n".join(moved))


def _flow(blocks: Sequence[_Block], width: float, gap: float) -> _Block:
    """Rows that are about as long as each other and not longer than `width`."""
    widest = max((block.width for block in blocks), default=1)
    across = picture.rows_of(len(blocks), int((width + gap) // (widest + gap)))
    return _column([_row(blocks[first : first + across], gap) for first in range(0, len(blocks), across)], gap)


def _framed(inside: _Block, pad: float, fill: str, radius: float) -> _Block:
    width, height = inside.width + 2 * pad, inside.height + 2 * pad
    return _Block(width, height, _rect(width, height, fill, _LINE, f' rx="{radius:g}"') + _moved(inside, pad, pad))


def _node(node: Node, drawn: Picture, look: _Look) -> _Block:
    title, *said = picture_words.node(node, drawn)
    room = look.page - 28
    caches = _flow([_cache(cache, node, drawn, look) for cache in node.caches], room, 10)
    width = max(caches.width, 250.0)
    heading = _Block(len(title) * 10.0, 16, _text(0, 13, 15, title, ' font-weight="bold"'))
    parts = [heading, _paragraph(" · ".join(said), width)]
    return _framed(_column([*parts, *([caches] if node.caches else [])], 6), 14, "#f4f5f7", 8)


def _paragraph(text: str, width: float) -> _Block:
    """Words in lines of about `width` pixels: nobody knows which font there will be."""
    lines = picture_words.broken(text, max(10, int(width / 6.9)), "")
    svg = "".join(_text(0, 12 + 17 * index, 12, line, f' fill="{_FAINT}"') for index, line in enumerate(lines))
    return _Block(max(len(line) for line in lines) * 6.6, 17.0 * len(lines), svg)


def _cache(cache: Cache, node: Node, drawn: Picture, look: _Look) -> _Block:
    parts = []
    title = picture_words.cache(cache, node, drawn)
    if title:
        parts.append(_paragraph(title, look.page))
    for kind, found in groupby(cache.cores, key=lambda core: core.kind):
        cores = [_core(core, look) for core in found]
        parts += [_paragraph(f"kind: {kind}", look.page)] if kind else []
        parts.append(_flow(cores, look.page - 28 - 20, 6))
    return _framed(_column(parts, 6), 8, "#ffffff", 5)


def _core(core: Core, look: _Look) -> _Block:
    return _framed(_column([_cpu(cpu, look) for cpu in core.cpus], 2), 3, "#ffffff", 4)


def _fill(cpu: Cpu, places: Mapping[str, int]) -> str:
    if cpu.role == picture.VCPU:
        return _TINTS[places[cpu.guest] % len(_TINTS)]
    return {picture.HOUSEKEEPING: "#dddddd", picture.SHARED: "url(#shared)"}.get(cpu.role, "#ffffff")


def _stroke(cpu: Cpu, look: _Look) -> tuple[str, str]:
    """The colour and the attributes of the CPU's outline."""
    if cpu.role == picture.IDLE:
        return _TINTS[look.places[cpu.guest] % len(_TINTS)], ' stroke-width="2.5" stroke-dasharray="5 3"'
    if cpu.role == picture.EMULATOR:
        return _FAINT, ' stroke-width="1.5" stroke-dasharray="1.5 2.5"'
    return "none", ""


def _cpu(cpu: Cpu, look: _Look) -> _Block:
    stroke, more = _stroke(cpu, look)
    base = look.height / 2 + look.font * 0.36
    parts = [
        f"<title>{_escaped(picture_words.cpu(cpu))}</title>",
        _rect(look.width, look.height, _fill(cpu, look.places), stroke, f' rx="2"{more}'),
        _text(5, base, look.font, str(cpu.number), ' font-weight="bold"'),
    ]
    if label := look.label(cpu):
        parts.append(_text(look.width - 9, base, look.font, label, ' text-anchor="end"'))
    if cpu.isolated:
        parts.append(f'<path d="M1 1V{look.height - 1:g}" stroke="{_INK}" stroke-width="2.5"/>')
    if cpu.nohz_full:
        parts.append(f'<circle cx="{look.width - 4:g}" cy="{look.height / 2:g}" r="2.2"/>')
    return _Block(look.width, look.height, f"<g>{''.join(parts)}</g>")


def _legend(drawn: Picture, look: _Look, width: float) -> _Block:
    """A swatch for each guest and for each other thing that is seen."""
    cpus = picture.cpus_of(drawn)
    items = [_item(sample, text, look) for sample, text in _samples(drawn, cpus)]
    shape = _paragraph(picture_words.shape(drawn, "panel"), width)
    return _column([_wrapped(items, width), shape], 10)


def _samples(drawn: Picture, cpus: Sequence[Cpu]) -> Iterable[tuple[Cpu, str]]:
    """A CPU as it looks here, and what that means."""
    for guest in drawn.guests:
        if guest.dedicated:
            yield _sample(picture.VCPU, guest.name), picture_words.guest(guest)
    for role, text in picture_words.roles(drawn).items():
        owner = next((cpu.guest for cpu in cpus if cpu.role == role), "")
        yield _sample(role, owner), text
    for guest in drawn.guests:
        if not guest.dedicated:
            yield _sample(picture.SHARED), picture_words.guest(guest)
    for flag, text in picture_words.flags(drawn).items():
        yield _sample(picture.FREE)._replace(isolated=flag == "isolated", nohz_full=flag == "nohz_full"), text


def _sample(role: str, guest: str = "") -> Cpu:
    return Cpu(-1, role, guest, (), (), (), False, False)


def _item(sample: Cpu, text: str, look: _Look) -> _Block:
    letters = picture.letters(look.places[sample.guest]) if sample.role == picture.VCPU and not look.named else ""
    stroke, more = _stroke(sample, look)
    parts = [_rect(26, 16, _fill(sample, look.places), stroke if more else _LINE, f' rx="2"{more}')]
    parts.append(_text(13, 12, 10, letters, ' text-anchor="middle" font-weight="bold"') if letters else "")
    parts.append(f'<path d="M1 0V16" stroke="{_INK}" stroke-width="2.5"/>' if sample.isolated else "")
    parts.append('<circle cx="20" cy="8" r="2.2"/>' if sample.nohz_full else "")
    parts.append(_text(34, 12.5, 12, text))
    return _Block(40 + len(text) * 6.7, 18, "".join(parts))


def _wrapped(blocks: Sequence[_Block], width: float) -> _Block:
    """Rows that each take what fits."""
    rows: list[list[_Block]] = []
    for block in blocks:
        used = sum(one.width + 18 for one in rows[-1]) if rows else width
        if rows and used + block.width <= width:
            rows[-1].append(block)
        else:
            rows.append([block])
    return _column([_row(row, 18) for row in rows], 6)
