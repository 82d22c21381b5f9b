# SPDX-License-Identifier: LGPL-2.1-or-later
"""In which order a libvirt domain tries its devices → their boot numbers; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_values import whole
from kvmsup.plan.libvirt_xml import Node
from kvmsup.records import NamedTuple

HARD, CDROM, NETWORK = "hd", "cdrom", "network"
_MOST = 255
_NO_MATTER = "machine.kernel is what boots"


class Device(NamedTuple):
    """A table of a disk or interface, with what <os><boot dev=…> calls its kind, and its own place, 0 for none."""

    section: Section
    kind: str
    order: int = 0


def order(node: Node, *, kernel: bool) -> int:
    """What the <boot> of a device says, 0 for nothing."""
    boot = node.at("boot")
    if boot.there and kernel:
        boot.lost(_NO_MATTER)
        return 0
    return whole(boot.attribute("order"), 1, 1 << 20) or 0


def numbered(domain: Node, devices: Sequence[Device], *, kernel: bool) -> Iterator[Section]:
    """The tables of `devices`, with boot numbers from 1 on."""
    if kernel:
        for boot in domain.at("os").all("boot"):
            boot.lost(_NO_MATTER)
    places = {} if kernel else _places(domain, devices)
    for index, device in enumerate(devices):
        place = places.get(index, 0)
        yield device.section._replace(values=device.section.values | ({"boot": place} if place else {}))


def _places(domain: Node, devices: Sequence[Device]) -> dict[int, int]:
    own = sorted((device.order, index) for index, device in enumerate(devices) if device.order)
    chosen = [index for _, index in own]
    boots = domain.at("os").all("boot")
    for boot in boots:
        kind = boot.attribute("dev")
        first = next(
            (index for index, device in enumerate(devices) if device.kind == kind and device.section.there), -1
        )
        if own or first < 0 or first in chosen:
            boot.lost("there is no such device" if not own else "the devices say their order themselves")
        else:
            chosen.append(first)
    # What is the order of the file anyway needs no number.
    disks = [index for index, device in enumerate(devices) if device.kind != NETWORK]
    if not own and chosen == disks[: len(chosen)]:
        return {}
    return {index: place for place, index in enumerate(chosen[:_MOST], 1) if devices[index].section.there}
