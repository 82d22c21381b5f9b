# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt domain's XML → the text of a guest's file, and what of the domain the guest lacks or has otherwise; pure.

Each of its parts reads what it understands of the XML; what none has read is dropped, and told with the reason. The
guest sees what it saw as far as kvmsup has it: CPUs, machine type, memory and addresses are never improved upon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvmsup.model.guest import has_pcie
from kvmsup.plan import (
    guestfile,
    libvirt_boot,
    libvirt_cpu,
    libvirt_devices,
    libvirt_disks,
    libvirt_machine,
    libvirt_memory,
    libvirt_nets,
    libvirt_placement,
    libvirt_reasons,
    libvirt_xml,
)
from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_values import Lists
from kvmsup.plan.libvirt_xml import Node, Told
from kvmsup.records import NamedTuple

_MOST_TOLD = 100
_WIDTH = 110


class Imported(NamedTuple):
    """A guest as its domain was: its file, and what is not as it was."""

    name: str
    sections: tuple[Section, ...]
    dropped: tuple[Told, ...]
    changed: tuple[Told, ...]

    @property
    def values(self) -> dict[str, dict[str, object]]:
        """The keys of each table."""
        return {section.table: section.values for section in self.sections if section.there}


def convert(content: bytes, name: str = "") -> Imported:
    """The guest of the domain in `content`, called `name` or else as the domain is.

    Raises KvmsupError for what is no domain, and for one that no guest can be.
    """
    reading = libvirt_xml.parse(content)
    domain = reading.domain
    libvirt_machine.check(domain)
    if name:
        domain.at("name").text()
    else:
        name = libvirt_machine.name(domain)
    sections = tuple(_sections(domain, name))
    dropped, changed = reading.dropped(libvirt_reasons.why), reading.changed()
    return Imported(name, sections, tuple(dropped), tuple(changed))


def _sections(domain: Node, name: str) -> Iterator[Section]:
    yield from libvirt_machine.description(domain)
    machine = libvirt_machine.read(domain)
    yield machine
    pcie, kernel = has_pcie(machine.values["type"]), "kernel" in machine.values
    processor = libvirt_cpu.read(domain, emulated="accel" in machine.values)
    yield Section("cpu", "", processor.values)
    lists = Lists()
    placed = libvirt_placement.read(domain, processor, lists)
    if placed.values or placed.pins:
        own = 'libvirt keeps nobody off these CPUs, kvmsup does. If they are not its own: cpus = "shared".'
        yield Section("placement", own if "cpus" in placed.values else "", placed.values)
    if placed.pins:
        yield Section("placement.vcpu", "", dict(placed.pins))
    yield from libvirt_memory.read(domain, processor, lists, name)
    disks = list(libvirt_disks.read(domain, placed.iothreads, pcie=pcie, kernel=kernel))
    nets = list(libvirt_nets.read(domain, pcie=pcie, kernel=kernel))
    used = {device.section.values.get("iothread", "") for device in disks}
    for number, cpus in sorted(placed.iothreads.items()):
        if f"io{number}" in used:
            yield Section(f"iothread.io{number}", "", {"cpus": cpus} if cpus else {})
    yield from libvirt_boot.numbered(domain, [*disks, *nets], kernel=kernel)
    yield from libvirt_devices.read(domain)


def render(guest: Imported, source: str) -> str:
    """The text of the file, which says at its end what of `source` is not in it. Raises KvmsupError."""
    head = [*guestfile.head(guest.name), f"Made from libvirt's {libvirt_xml.short(source, 200)}."]
    tail = [
        *_listed("Of the domain this is otherwise here:", guest.changed),
        *_listed("Of the domain this is not here:", guest.dropped),
    ]
    return guestfile.render(head, guest.sections, tail)


def _listed(head: str, told: Sequence[Told]) -> list[str]:
    if not told:
        return []
    rest = len(told) - _MOST_TOLD
    return [head, *(f"  {one}" for one in told[:_MOST_TOLD]), *([f"  and {rest} more"] if rest > 0 else [])]
