# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest → its disks as QEMU, attach, create and systemd are told of them; pure.

An image in the guest's own directory is on QEMU's command line. One that only root may open is plugged in by attach:
the same properties, but for the file, which is a descriptor by then.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup.model import disks, hostpaths
from kvmsup.model.disks import BLK, CDROM, SCSI
from kvmsup.model.guest import Disk, Guest
from kvmsup.plan import images, paths, ports, unitfile
from kvmsup.plan.plugs import CHOSEN_AIO, Command, File, Plug
from kvmsup.plan.ports import Port
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    Properties = dict[str, Any]

# Stands for the firmware that setup has found.
CHOSEN_CODE = "chosen"


def id_of(disk: Disk) -> str:
    """What QEMU calls the drive, and the node of its contents."""
    return f"disk.{disk.name}"


def path(guest: str, disk: Disk) -> str:
    """Where the image is on the host."""
    return disk.path if hostpaths.is_absolute(disk.path) else f"{paths.STATE}/{guest}/{disk.path}"


def is_plugged(disk: Disk) -> bool:
    """Whether attach hands it over."""
    return hostpaths.is_absolute(disk.path)


def boot_order(guest: Guest) -> dict[str, int]:
    """QEMU's bootindex by disk: the numbers of the TOML, then the disks without one in the order of the file."""
    numbers = (*(disk.boot for disk in guest.disks), *(net.boot for net in guest.nets))
    last = max(numbers, default=0)
    order = {}
    for disk in guest.disks:
        last += not disk.boot
        order[disk.name] = disk.boot or last
    return order


def controller(disk: Disk) -> str:
    """What QEMU calls the SCSI controller of `disk`: one for each iothread that serves some."""
    return f"scsi.{disk.iothread}" if disk.iothread else "scsi"


def places(guest: Guest) -> dict[str, Port]:
    """The port of each virtio-blk disk and SCSI controller, by its id: in the order in which the TOML needs them."""
    wanted = dict.fromkeys(
        controller(disk) if disk.bus == SCSI else id_of(disk) for disk in guest.disks if disk.bus != CDROM
    )
    return {one: ports.port(ports.DISK_SLOTS, index, one, guest.machine.type) for index, one in enumerate(wanted)}


def controllers(guest: Guest) -> Iterator[Properties]:
    """The SCSI controllers."""
    where = places(guest)
    for name, iothread in {controller(disk): disk.iothread for disk in guest.disks if disk.bus == SCSI}.items():
        found: Properties = {"driver": "virtio-scsi-pci", "id": name, **where[name].place}
        yield found | ({"iothread": iothread} if iothread else {})


def node(disk: Disk, file: Properties, aio: str) -> Properties:
    """The contents of the disk, which are in `file`.

    An image can name a backing file in its header. That is never followed (effects/headers.py).
    """
    cache = {"direct": disk.cache == disks.NONE, "no-flush": disk.cache == disks.UNSAFE}
    discard = {"discard": "unmap"} if disk.discard and not disk.read_only else {}
    under = {**file, "read-only": disk.read_only, "aio": aio, "cache": cache, **discard}
    found: Properties = {"driver": disk.format, "node-name": id_of(disk), "read-only": disk.read_only}
    backing = {"backing": None} if disk.format == "qcow2" else {}
    return {**found, "cache": cache, **discard, **backing, "file": under}


def device(guest: Guest, disk: Disk) -> Properties:
    """The drive that the guest sees. Its serial number is the disk's name: /dev/disk/by-id has it."""
    name = id_of(disk)
    found: Properties = {"id": name, "drive": name, "serial": disk.name, "bootindex": boot_order(guest)[disk.name]}
    if disk.bus == BLK:
        iothread = {"iothread": disk.iothread} if disk.iothread else {}
        return {"driver": "virtio-blk-pci", **found, **places(guest)[name].place, **iothread}
    if disk.bus == SCSI:
        beside = [one.name for one in guest.disks if one.bus == SCSI and one.iothread == disk.iothread]
        where = {"bus": f"{controller(disk)}.0", "scsi-id": beside.index(disk.name)}
        return {"driver": "scsi-hd", **found, **where}
    index = [one.name for one in guest.disks if one.bus == CDROM].index(disk.name)
    # The AHCI of q35 has a bus for each drive, the IDE of pc has two with two drives each.
    bus, unit = (index, 0) if guest.machine.pcie else divmod(index, 2)
    return {"driver": "ide-cd", **found, "bus": f"ide.{bus}", "unit": unit}


def plugs(guest: Guest) -> Iterator[Plug]:
    """What attach opens and plugs in: in the order of the file, as guests number their disks by it."""
    for number, disk in enumerate(guest.disks):
        if is_plugged(disk):
            driver = "host_device" if hostpaths.is_device(disk.path) else "file"
            file = {"driver": driver, "filename": f"/dev/fdset/{number}"}
            add = Command("blockdev-add", node(disk, file, disk.aio or CHOSEN_AIO))
            source = File(disk.path, not disk.read_only, number, disk.format, disk.cache == disks.NONE)
            yield Plug(id_of(disk), source, (add, *_connect(guest, disk)))


def _connect(guest: Guest, disk: Disk) -> Iterator[Command]:
    if disk.bus != CDROM:
        yield Command("device_add", device(guest, disk))
        return
    # An IDE drive cannot be added to a machine that has been built, but it can be given its medium.
    name = id_of(disk)
    yield Command("blockdev-open-tray", {"id": name})
    yield Command("blockdev-insert-medium", {"id": name, "node-name": name})
    yield Command("blockdev-close-tray", {"id": name})


def options(guest: Guest) -> Iterator[tuple[str, Properties]]:
    """What is on QEMU's command line: each option with its properties, controllers and drives after their ports."""
    for port in places(guest).values():
        if port.id:
            yield "-device", {"driver": "pcie-root-port", **port.options}
    for found in controllers(guest):
        yield "-device", found
    for disk in guest.disks:
        if not is_plugged(disk):
            file = {"driver": "file", "filename": path(guest.name, disk)}
            yield "-blockdev", node(disk, file, disk.aio or CHOSEN_AIO)
            yield "-device", device(guest, disk)
        elif disk.bus == CDROM:
            empty = device(guest, disk)
            yield "-device", {key: value for key, value in empty.items() if key != "drive"}


def firmware(guest: Guest) -> Iterator[Properties]:
    """The nodes of UEFI's flash: the program, which is the host's, and the guest's own variables."""
    for name, file, read_only in (
        ("firmware.code", CHOSEN_CODE, True),
        ("firmware.nvram", f"{paths.STATE}/{guest.name}/{images.NVRAM}", False),
    ):
        if guest.machine.firmware == "uefi":
            under = {"driver": "file", "filename": file, "read-only": read_only}
            yield {"driver": "raw", "node-name": name, "read-only": read_only, "file": under}


def dependencies(guest: Guest) -> list[str]:
    """For [Unit]: mounts and devices that systemd waits for. A device that never comes is told of by attach."""
    hosts = [disk.path for disk in guest.disks if is_plugged(disk)] + [disk.base for disk in guest.disks if disk.base]
    paths = [unitfile.path(one) for one in dict.fromkeys(hosts) if not hostpaths.is_device(one)]
    units = [f"{unitfile.path_unit(one)}.device" for one in dict.fromkeys(hosts) if hostpaths.is_device(one)]
    lines = [f"RequiresMountsFor={' '.join(paths)}"] if paths else []
    return lines + [f"{key}={' '.join(units)}" for key in ("Wants", "After") if units]


def directives(guest: Guest) -> list[str]:
    """For [Service]: the devices that attach opens in the unit's device policy, and the guest's own directory."""
    devices = {disk.path: disk for disk in sorted(guest.disks, key=lambda disk: not disk.read_only)}
    lines = [
        f"DeviceAllow={unitfile.path(one)} {'r' if disk.read_only else 'rw'}"
        for one, disk in devices.items()
        if is_plugged(disk) and hostpaths.is_device(one)
    ]
    if images.wanted(guest):
        lines += [
            f"StateDirectory=kvmsup/{guest.name}",
            "StateDirectoryMode=0700",
            # create tells how far it is, and that it is still at work.
            "NotifyAccess=exec",
            f"Environment={unitfile.assignment(images.VARIABLE, images.render(images.of(guest)))}",
        ]
    return lines
