# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disks of a libvirt domain → [disk.NAME]; pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from kvmsup.model import disks, hostpaths
from kvmsup.model.disks import BLK, CDROM, SCSI
from kvmsup.plan import libvirt_boot
from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_boot import Device
from kvmsup.plan.libvirt_values import whole
from kvmsup.plan.libvirt_xml import Node, short
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_NAME = r"[a-z][a-z0-9-]{0,14}"
_LONGEST_PATH = 4096
_ELSEWHERE = {
    "network": "disks over the network are the host's to attach: as a block device, or a file of a mounted share",
    "volume": "where a volume of a libvirt pool is: virsh vol-path; then path = that",
    "dir": "a directory as a disk is not built",
    "nvme": "NVMe drives are not handed over: a partition of one that the host has is a block device",
    "vhostuser": "vhost-user is not built",
    "vhostvdpa": "vDPA is not built",
}
_CACHES = {"": disks.NONE, "none": disks.NONE, "writeback": disks.WRITEBACK, "unsafe": disks.UNSAFE}


class Room(NamedTuple):
    """How many disks of each bus have a place; counted down."""

    left: dict[str, int]
    controllers: set[str]


def read(domain: Node, iothreads: Mapping[int, str | None], *, pcie: bool, kernel: bool) -> Iterator[Device]:
    """The tables, in the order of the XML."""
    room = Room(dict(disks.PCIE_ROOM if pcie else disks.PCI_ROOM), set())
    devices = domain.at("devices")
    controllers = _controllers(devices)
    paths: dict[str, bool] = {}
    names: Counter[str] = Counter()
    for node in devices.all("disk"):
        kind, what = node.attribute("type") or "file", node.attribute("device") or "disk"
        path = _path(node, kind, what)
        if not path:
            continue
        values = {"path": path, **_backing(node, what)}
        if "format" not in values:
            continue
        values |= _bus(node, what)
        values |= _iothread(node, values["bus"], controllers, iothreads)
        if why := _no_place(values, room, paths):
            node.lost(why)
            continue
        name = _name(node, names)
        order = libvirt_boot.order(node, kernel=kernel)
        yield Device(
            Section(f"disk.{name}", "", values), libvirt_boot.CDROM if what == "cdrom" else libvirt_boot.HARD, order
        )


def _controllers(devices: Node) -> dict[str, str]:
    """The iothread of each SCSI controller, by its index."""
    found: dict[str, str] = {}
    for node in devices.all("controller"):
        if node.attribute("type") == "scsi" and (iothread := node.at("driver").attribute("iothread")):
            found[node.attribute("index") or "0"] = iothread
        node.passed()
    return found


def _path(node: Node, kind: str, what: str) -> str:
    """Where the disk is; "" where there is nothing that can be opened, which has been told."""
    source = node.at("source")
    path = source.attribute("dev" if kind == "block" else "file")
    if what == "floppy":
        node.lost("there are no floppy disks")
    elif what not in ("disk", "cdrom", "lun"):
        node.lost("is neither a disk nor a CD-ROM")
    elif kind in _ELSEWHERE:
        node.lost(_ELSEWHERE[kind])
    elif kind not in ("file", "block"):
        node.lost("is neither a file nor a block device")
    elif not path and what == "cdrom":
        node.lost("an empty drive stays empty: there is no way to put a disk into it")
    elif not hostpaths.is_absolute(path):
        node.lost(f'"{short(path)}" is no absolute path')
    elif not path.isprintable() or len(path.encode()) > _LONGEST_PATH:
        node.lost(f"its path is not one printable line of up to {_LONGEST_PATH} bytes")
    elif hostpaths.is_device(path) and " " in path:
        node.lost("its path has a space, which systemd takes in no device's path")
    elif why := hostpaths.wrong(path):
        node.lost(short(f"{why[0]}: {why[1]}", 300))
    else:
        return path
    return ""


def _backing(node: Node, what: str) -> dict[str, Any]:
    """Format, and how the host reads and writes; without a format it was dropped."""
    driver = node.at("driver")
    driver.attribute("name")
    format = driver.attribute("type") or "raw"
    if format in ("iso", "aio"):
        format = "raw"
    if format not in disks.FORMATS:
        node.lost(f"images are raw or qcow2: qemu-img convert -O qcow2 makes one of {short(format)}")
        return {}
    if node.at("backingStore").there:
        _below(node.at("backingStore"))
    values: dict[str, Any] = {"format": format}
    if what != "cdrom" and node.at("readonly").there:
        values["read-only"] = True
    elif what == "cdrom":
        node.at("readonly")
    if node.at("shareable").there:
        node.at("shareable").lost("a disk is for one guest, unless all only read it")
    return values | _cache(driver, read_only=what == "cdrom" or "read-only" in values)


def _below(store: Node) -> None:
    if store.attribute("type") or store.at("source").there:
        store.lost(
            "an image that names another one is refused: qemu-img convert, or qemu-img rebase -b '' makes it whole"
        )
    else:
        store.passed()


def _cache(driver: Node, *, read_only: bool) -> dict[str, Any]:
    cache, aio = driver.attribute("cache"), driver.attribute("io")
    values: dict[str, Any] = {}
    if cache in ("writethrough", "directsync"):
        driver.changed('past the host\'s cache; what the guest flushes is safe: cache = "none"', "/@cache")
    elif cache in ("writeback", "unsafe"):
        values["cache"] = cache
    elif cache not in ("", "default", "none"):
        driver.part_lost("/@cache", "is no way of caching")
    if aio in disks.AIOS and not (aio == "native" and "cache" in values):
        values["aio"] = aio
    elif aio:
        driver.part_lost("/@io", "is for what goes past the host's cache, or is no way of I/O")
    if driver.attribute("discard") == "unmap" and not read_only:
        values["discard"] = True
    return values


def _bus(node: Node, what: str) -> dict[str, str]:
    target = node.at("target")
    bus = target.attribute("bus")
    if what == "cdrom":
        if bus not in ("", "sata", "ide", "scsi"):
            target.changed("a CD-ROM drive is on SATA or IDE", "/@bus")
        return {"bus": CDROM}
    if what == "lun":
        node.changed("is a disk of its own: SCSI commands are not passed through", "/@device")
    if bus == "scsi":
        return {"bus": SCSI}
    if bus not in ("", "virtio"):
        told = "a system without its driver, such as Windows, does not find it"
        target.changed(f"{short(bus, 20)} becomes {BLK}: {told}", "/@bus")
    return {"bus": BLK}


def _iothread(
    node: Node, bus: str, controllers: Mapping[str, str], iothreads: Mapping[int, str | None]
) -> dict[str, str]:
    driver = node.at("driver")
    number = driver.attribute("iothread")
    if bus == SCSI:
        address = node.at("address")
        number = controllers.get(address.attribute("controller") or "0", number)
        address.passed()
    known = whole(number, 1, 99_999_999)
    if not number or bus == CDROM:
        return {}
    if known not in iothreads:
        driver.part_lost("/@iothread", "there is no such iothread")
        return {}
    return {"iothread": f"io{known}"}


def _no_place(values: Mapping[str, Any], room: Room, paths: dict[str, bool]) -> str:
    """Why there is no such disk beside those before it, else "" and its place is taken."""
    path, bus = values["path"], values["bus"]
    read_only = bus == CDROM or "read-only" in values
    if path in paths and not (paths[path] and read_only):
        return "another disk of the guest has this image"
    controller = values.get("iothread", "")
    needs = Counter({bus: 1})
    if bus == SCSI and controller not in room.controllers:
        needs[BLK] += 1
    if any(room.left[one] < count for one, count in needs.items()):
        return 'there is no room for it on the machine; disks with bus = "virtio-scsi" share one place'
    for one, count in needs.items():
        room.left[one] -= count
    if bus == SCSI:
        room.controllers.add(controller)
    paths[path] = read_only
    return ""


def _name(node: Node, names: Counter[str]) -> str:
    """What libvirt calls it, such as vda; a name that is none, or taken, becomes another."""
    asked = node.at("target").attribute("dev")
    name = asked if re.fullmatch(_NAME, asked) and not names[asked] else ""
    number = 0
    while not name or names[name]:
        number += 1
        name = f"disk{number}"
    names[name] += 1
    return name
