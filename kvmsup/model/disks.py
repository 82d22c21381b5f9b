# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML's [disk.NAME] → the guest's disks, in the order of the file."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from kvmsup import sizes
from kvmsup.model import hostpaths
from kvmsup.model.guest import Disk, IoThread, Machine, Net
from kvmsup.model.table import Table

BLK, SCSI, CDROM = BUSES = ("virtio-blk", "virtio-scsi", "cdrom")
FORMATS = ("raw", "qcow2")
NONE, WRITEBACK, UNSAFE = CACHES = ("none", "writeback", "unsafe")
AIOS = ("io_uring", "native", "threads")
NAME_RULE = "a lower-case letter, then up to 14 lower-case letters, digits and dashes"
_NAME = r"[a-z][a-z0-9-]{0,14}"
# In the guest's own directory, where a longer name could not have our ending while it is made.
_OWN = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
_NVRAM = "nvram.fd"
_SECTOR = 512
# On PCIe there are 8 ports in each of 10 slots, and 6 buses of the AHCI; else a slot each, and 2 drives on each of 2
# buses of the IDE. A SCSI controller takes a place, and has 256 targets (plan/ports.py, hw/scsi/virtio-scsi.c).
PCIE_ROOM = {BLK: 80, SCSI: 256, CDROM: 6}
PCI_ROOM = {BLK: 10, SCSI: 256, CDROM: 4}


def read(table: Table, keys: tuple[str, ...], iothreads: Sequence[IoThread]) -> tuple[Disk, ...]:
    """The disks of `table`; an iothread that one names must be among `iothreads`."""
    found = []
    there = dict.fromkeys(one.name for one in iothreads)
    for name in table:
        if not re.fullmatch(_NAME, name):
            table.note(name, "not a name for a disk", NAME_RULE, at_key=True)
            continue
        found.append(_disk(table.table(name, keys), name, there))
    _check_apart(table, found)
    return tuple(found)


def _disk(table: Table, name: str, iothreads: Collection[str]) -> Disk:
    bus = table.choice("bus", BUSES, BLK)
    path, format = _path(table), _format(table)
    read_only = _read_only(table, bus)
    size, base = _made(table, path, read_only)
    base_format = table.choice("base-format", FORMATS, format)
    if "base-format" in table and not base:
        table.note("base-format", "there is no base", 'base = "/srv/debian13.qcow2"', at_key=True)
    iothread = table.text("iothread", "", '"io0"')
    if iothread and bus == CDROM:
        table.note("iothread", "a CD-ROM drive has none", "leave it out", at_key=True)
    elif iothread and iothread not in iothreads:
        there = f"known here: {', '.join([*iothreads][:20])}" if iothreads else f"[iothread.{iothread}] makes one"
        table.note("iothread", f'there is no iothread "{iothread}"', there)
    cache, aio = _cache(table)
    discard = table.boolean("discard", False)
    if discard and read_only:
        table.note("discard", "nothing is discarded on what is read only", "leave it out", severity="warning")
    boot = table.integer("boot", 1, 255) or 0
    return Disk(name, path, format, size, base, base_format, bus, read_only, iothread, cache, aio, discard, boot)


def _path(table: Table) -> str:
    path = table.text("path", "", '"root.qcow2"')
    if "path" not in table:
        table.note("", "path is missing: where is it?", 'path = "root.qcow2", or an absolute path')
    elif hostpaths.is_absolute(path):
        if path.endswith("/"):
            table.note("path", f'"{path}" is a directory', "name a file or a block device")
        elif hostpaths.is_device(path) and " " in path:
            # systemd-executor, since 255, ends a device's path at its first space, and cannot read what follows
            # (src/core/execute-serialize.c, exec_cgroup_context_deserialize).
            what = f'"{path}" has a space, which systemd takes in no device\'s path'
            table.note("path", what, "another of its links below /dev/disk: udev escapes spaces")
        elif why := hostpaths.wrong(path):
            table.note("path", *why)
    elif path == _NVRAM:
        table.note("path", f"{_NVRAM} is what the guest's firmware keeps", "another name")
    elif not re.fullmatch(_OWN, path) and path == table.values["path"]:
        rule = "a name of letters, digits and . _ - is an image of the guest's own"
        table.note("path", f'"{path}" is neither a name nor an absolute path', rule)
    return path


def _format(table: Table) -> str:
    if "format" not in table:
        what = "format is missing: a guest can write any header, so it is never guessed"
        table.note("", what, 'format = "qcow2" or "raw"')
    return table.choice("format", FORMATS, "raw")


def _read_only(table: Table, bus: str) -> bool:
    read_only = table.boolean("read-only", bus == CDROM)
    if bus == CDROM and not read_only:
        table.note("read-only", "a CD-ROM is never written", "leave it out, or use another bus")
    return read_only


def _made(table: Table, path: str, read_only: bool) -> tuple[int, str]:
    """The size in bytes and the base that a new image gets; 0 and "" where nothing is made."""
    written, base = table.size("size"), table.text("base", "", '"/srv/debian13.qcow2"')
    size = written or 0
    if base and (why := hostpaths.wrong(base) or hostpaths.unshowable(base)):
        table.note("base", *why)
    elif hostpaths.is_device(base):
        what = f'"{base}" is a device, and a base is copied by the guest\'s own user, who may open none'
        table.note("base", what, f"qemu-img convert -O qcow2 {base} /srv/base.qcow2 makes a file of it")
    for key in ("size", "base"):
        if key in table and hostpaths.is_absolute(path):
            what = "what an absolute path names is used as it is, and neither made nor resized"
            table.note(key, what, "leave it out, or make the image the guest's own with a relative path", at_key=True)
    if size % _SECTOR:
        fits = sizes.render(size // _SECTOR * _SECTOR + _SECTOR)
        table.note("size", f"{size} bytes are no whole number of sectors", f'size = "{fits}"')
    elif written == 0:
        table.note("size", "a disk without room", 'size = "20G"')
    elif size and not base and read_only:
        table.note("size", "an empty disk that nobody can write", "leave read-only out, or name a base")
    return size, base


def _cache(table: Table) -> tuple[str, str]:
    """How the host caches, and QEMU's way of asynchronous I/O; "" leaves that to setup."""
    cache = table.choice("cache", CACHES, NONE)
    aio = table.choice("aio", AIOS, "threads") if "aio" in table else ""
    if aio == "native" and cache != NONE:
        table.note("aio", f'"native" goes past the host\'s cache, and cache = "{cache}" does not', 'aio = "io_uring"')
    if cache == WRITEBACK:
        what = "what the guest has not flushed is in the host's memory as well, and lost with the host"
        table.note("cache", what, 'cache = "none" keeps it out of there', severity="warning")
    elif cache == UNSAFE:
        what = "a crash of the host loses what the guest was told is safe, and may leave the disk beyond repair"
        table.note("cache", what, 'for a disk that can be made again; else cache = "none"', severity="warning")
    return cache, aio


def _check_apart(table: Table, disks: Sequence[Disk]) -> None:
    """Two disks on one image would destroy it, unless nobody writes."""
    first: dict[str, Disk] = {}
    for disk in disks:
        other = first.setdefault(disk.path, disk)
        if other is not disk and disk.path and not (other.read_only and disk.read_only):
            path = (*table.path, disk.name, "path")
            table.document.note(path, f"disk.{other.name} has {disk.path} already", "each needs an image of its own")


def _check_room(table: Table, disks: Sequence[Disk], pcie: bool) -> None:
    """Note the first disk of each bus that has no place: QEMU would tell of a slot, a bus or a target."""
    left = dict(PCIE_ROOM if pcie else PCI_ROOM)
    controllers: set[str] = set()
    for disk in disks:
        if disk.bus == SCSI and disk.iothread not in controllers:
            controllers.add(disk.iothread)
            left[BLK] -= 1
        left[disk.bus] -= 1
        if left[disk.bus] == -1 or (disk.bus == SCSI and left[BLK] == -1):
            what = f"there is no room on the machine for one more {disk.bus}"
            table.note(disk.name, what, 'disks with bus = "virtio-scsi" share one place', at_key=True)


def check_boot(top: Table, disks: Sequence[Disk], nets: Sequence[Net], machine: Machine) -> None:
    """Note two devices at one place in the boot order, and an order that nothing follows."""
    _check_room(Table(top.document, ("disk",), {}, ()), disks, machine.pcie)
    taken: dict[int, str] = {}
    for kind, devices in (("net", nets), ("disk", disks)):
        for device in devices:
            if not device.boot:
                continue
            name = f"{kind}.{device.name}"
            other = taken.setdefault(device.boot, name)
            path = (kind, device.name, "boot")
            # Of two interfaces their own check tells.
            if other != name and kind == "disk":
                top.document.note(path, f"{other} has boot = {device.boot} already", "number them 1, 2, …")
            elif machine.kernel:
                what = "has no effect: machine.kernel is what boots"
                top.document.note(path, what, "leave one of them out", severity="warning")
