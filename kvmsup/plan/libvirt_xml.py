# SPDX-License-Identifier: LGPL-2.1-or-later
"""The XML of a libvirt domain → elements that know what of them has been read; pure.

Whoever converts reads what it understands. All that nobody has read is dropped, and told with its path: so nothing is
lost in silence, whatever libvirt adds. The file may come from anywhere, so it is bounded in every way; a DOCTYPE,
which libvirt never writes, is refused, and with it every entity of the file's own (a "billion laughs").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

from kvmsup.errors import KvmsupError, visible
from kvmsup.records import NamedTuple

MOST_BYTES = 1 << 20
# 4096 vCPUs that are pinned and scheduled one by one are fewer. libvirt's own elements are 8 deep.
_MOST_ELEMENTS = 20_000
_MOST_DEPTH = 40
_NAMESPACES = {"http://libvirt.org/schemas/domain/qemu/1.0": "qemu:"}
_LONGEST_NAME = 60


class Told(NamedTuple):
    """Something of the XML that the guest does not have, or has otherwise, and why. `times` are at like paths."""

    path: str
    why: str
    times: int = 1

    def __str__(self) -> str:
        several = f" ({self.times} times)" if self.times > 1 else ""
        return f"{self.path}{several}: {self.why}"


class _Bounded(ElementTree.TreeBuilder):
    """Builds the tree as long as it is one of a domain's size."""

    _elements = _depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._elements += 1
        self._depth += 1
        if self._elements > _MOST_ELEMENTS:
            raise KvmsupError(f"the XML has over {_MOST_ELEMENTS} elements: no domain has")
        if self._depth > _MOST_DEPTH:
            raise KvmsupError(f"the XML has elements in elements, over {_MOST_DEPTH} deep: no domain has")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def parse(content: bytes) -> Reading:
    """The domain in `content`. Raises KvmsupError for whatever is none."""
    if len(content) > MOST_BYTES:
        raise KvmsupError(f"the XML has over {MOST_BYTES >> 20} MiB: no domain has")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        raise KvmsupError(what, "virsh dumpxml --inactive GUEST writes UTF-8") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise KvmsupError("the XML has a DOCTYPE, which libvirt never writes", "remove it, and what needs it")
    parser = ElementTree.XMLParser(target=_Bounded())
    try:
        parser.feed(text)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise KvmsupError(f"not XML: {error}", "virsh dumpxml --inactive GUEST writes it") from None
    if root.tag != "domain":
        hint = "virsh dumpxml --inactive GUEST writes it; of a snapshot or backup, its <domain> part"
        raise KvmsupError(f"this is <{_name(root.tag)}>, not the <domain> of a guest", hint)
    return Reading(root)


def _name(tag: str) -> str:
    """As the file has it, for those namespaces that are libvirt's; printable."""
    space, brace, local = tag.rpartition("}")
    return short(f"{_NAMESPACES.get(space[1:], '') if brace else ''}{local}", _LONGEST_NAME)


def short(text: str, most: int = 80) -> str:
    """`text` on one line that can be printed and is not endless."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return visible(line if len(line) <= most else f"{line[:most]}…")


class Reading:
    """A domain's XML, with what has been read of it and what is told about it."""

    def __init__(self, root: ElementTree.Element) -> None:
        self._root = root
        self._read: set[ElementTree.Element] = set()
        self._attributes: set[tuple[ElementTree.Element, str]] = set()
        self._texts: set[ElementTree.Element] = set()
        self._lost: dict[ElementTree.Element, str] = {}
        self._parts: list[tuple[ElementTree.Element, str, str, bool]] = []

    @property
    def domain(self) -> Node:
        """The root."""
        self._read.add(self._root)
        return Node(self._root, self, there=True)

    def dropped(self, why: Callable[[str], str]) -> list[Told]:
        """What is lost; of what nobody has read `why` says the reason by its path, or "" where nothing is lost."""
        paths: dict[ElementTree.Element, str] = {}
        found = list(self._walk(self._root, "", "", why, paths))
        return _grouped([*found, *self._told(paths, lost=True)])

    def changed(self) -> list[Told]:
        """What the guest has otherwise than in libvirt."""
        paths: dict[ElementTree.Element, str] = {}
        list(self._walk(self._root, "", "", lambda _: "", paths))
        return _grouped(list(self._told(paths, lost=False)))

    def _told(self, paths: dict[ElementTree.Element, str], *, lost: bool) -> Iterator[tuple[str, str]]:
        """Those notes that are about nothing which is dropped as a whole."""
        for element, part, reason, is_lost in self._parts:
            if is_lost is lost and element in paths:
                yield f"{paths[element]}{part}".lstrip("/"), reason

    def _walk(
        self,
        element: ElementTree.Element,
        path: str,
        plain: str,
        why: Callable[[str], str],
        paths: dict[ElementTree.Element, str],
    ) -> Iterator[tuple[str, str]]:
        """What nobody has read, with its reason, and in `paths` where all else is; `plain` is without numbers."""
        if element in self._lost or element not in self._read:
            if reason := self._lost.get(element) or why(plain):
                yield path, reason
            return
        paths[element] = path
        for part in self._unread(element):
            if reason := why(f"{plain}/{part}".lstrip("/")):
                yield f"{path}/{part}".lstrip("/"), reason
        several = Counter(child.tag for child in element)
        numbers: Counter[str] = Counter()
        for child in element:
            numbers[child.tag] += 1
            name = _name(child.tag)
            number = f"[{numbers[child.tag]}]" if several[child.tag] > 1 else ""
            yield from self._walk(
                child, f"{path}/{name}{number}".lstrip("/"), f"{plain}/{name}".lstrip("/"), why, paths
            )

    def _unread(self, element: ElementTree.Element) -> Iterator[str]:
        for name in element.attrib:
            if (element, name) not in self._attributes:
                yield f"@{_name(name)}"
        if element.text and element.text.strip() and element not in self._texts:
            yield "text()"

    def note_read(self, element: ElementTree.Element, attribute: str | None = None) -> None:
        """That `element` has been looked into, or that one of its attributes has been read; "" is its text."""
        if attribute is None:
            self._read.add(element)
        elif attribute:
            self._attributes.add((element, attribute))
        else:
            self._texts.add(element)

    def note_lost(self, element: ElementTree.Element, why: str) -> None:
        """That all of `element` is dropped."""
        self._lost.setdefault(element, why)

    def note_part(self, element: ElementTree.Element, part: str, why: str, *, lost: bool) -> None:
        """Something about `element`, or a part of it such as "/@mode"."""
        self._parts.append((element, part, why, lost))


def _grouped(found: list[tuple[str, str]]) -> list[Told]:
    """One for each reason at like paths; the path is that of the first."""
    first: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for path, why in found:
        plain = re.sub(r"\[[0-9]+\]", "", path)
        key = (plain, why)
        counts[key] += 1
        first.setdefault(key, path)
    return [Told(first[key] if count == 1 else key[0], key[1], count) for key, count in counts.items()]


class Node:
    """One element, or where it should be. Reading it is written down."""

    def __init__(self, element: ElementTree.Element, reading: Reading, *, there: bool) -> None:
        self._element = element
        self._reading = reading
        self.there = there

    @property
    def tag(self) -> str:
        """Its name."""
        return _name(self._element.tag)

    def at(self, tag: str) -> Node:
        """The first element of that name in this one; one without anything where there is none."""
        found = self._element.find(tag)
        if found is None:
            return Node(ElementTree.Element(tag), self._reading, there=False)
        self._reading.note_read(found)
        return Node(found, self._reading, there=True)

    def all(self, tag: str) -> list[Node]:
        """All elements of that name in this one."""
        found = self._element.findall(tag)
        for one in found:
            self._reading.note_read(one)
        return [Node(one, self._reading, there=True) for one in found]

    def children(self) -> Iterator[Node]:
        """All elements in this one, whatever their names."""
        for one in self._element:
            self._reading.note_read(one)
            yield Node(one, self._reading, there=True)

    def attribute(self, name: str) -> str:
        """What it says, "" where there is none."""
        self._reading.note_read(self._element, name)
        return self._element.get(name, "").strip()

    def text(self) -> str:
        """Its own text, "" where there is none."""
        self._reading.note_read(self._element, "")
        return (self._element.text or "").strip()

    def passed(self) -> None:
        """It was looked at as a whole, and nothing of it is lost."""
        for one in self._element.iter():
            self._reading.note_read(one)
            self._reading.note_read(one, "")
            for name in one.attrib:
                self._reading.note_read(one, name)

    def lost(self, why: str) -> None:
        """All of it is dropped."""
        self._reading.note_lost(self._element, why)

    def part_lost(self, part: str, why: str) -> None:
        """A part of it, such as "/@mode", is dropped, although it was read; "" is what it means as a whole."""
        if self.there:
            self._reading.note_part(self._element, part, why, lost=True)

    def changed(self, why: str, part: str = "") -> None:
        """The guest has it, and otherwise."""
        if self.there:
            self._reading.note_part(self._element, part, why, lost=False)
