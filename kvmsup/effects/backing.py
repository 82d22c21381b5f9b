# SPDX-License-Identifier: LGPL-2.1-or-later
"""What on the host is behind a guest's disks and its firmware: setup looks at it before the start, and check."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from kvmsup import sizes
from kvmsup.effects import headers, identity, iouring, kernel, opening, readable
from kvmsup.errors import HostError, Refusal
from kvmsup.model import hostpaths
from kvmsup.model.claim import Backing, Held
from kvmsup.model.guest import Disk, Guest
from kvmsup.model.table import Problem
from kvmsup.plan import disks as planned
from kvmsup.plan import images, refusals
from kvmsup.plan.paths import BINARY
from kvmsup.plan.plugs import File


def find(root: str, guest: Guest, early: Callable[[], bool]) -> Backing:
    """Look at everything. `early` says whether the host is still booting: a disk that is not there may yet come.

    Raises HostError with the key in the guest's file.
    """
    held = tuple(one for disk in guest.disks for one in _held(root, guest, disk, early))
    left_open = any(not disk.aio for disk in guest.disks)
    aio = iouring.choose(root, BINARY, kernel.version()) if left_open else ""
    return Backing(held, aio, *_firmware(root, guest))


def _firmware(root: str, guest: Guest) -> tuple[str, str]:
    """The program, and what the guest's NVRAM begins as. Raises HostError."""
    if guest.machine.firmware != "uefi":
        return "", ""
    from kvmsup.effects import firmware  # only guests with UEFI need it

    return firmware.find(root, guest.machine.type)


def _held(root: str, guest: Guest, disk: Disk, early: Callable[[], bool]) -> Iterator[Held]:
    try:
        found = _look(root, guest, disk, early)
    except FileNotFoundError:
        # attach looks again, when systemd has waited for mounts and devices.
        if not early():
            what = f"disk.{disk.name}: {disk.path}: No such file or directory"
            raise HostError(what, "nothing is made at an absolute path; an image with a relative one is") from None
    except OSError as error:
        raise HostError(f"disk.{disk.name}: {disk.path}: {error.strerror}") from None
    else:
        if found:
            yield _as_held(root, disk.name, found, write=not disk.read_only)


def _as_held(root: str, name: str, found: os.stat_result, *, write: bool) -> Held:
    known = identity.of(found)
    return Held(name, known, write, identity.beneath(root, known))


def bases(root: str, guest: Guest) -> Iterator[Held]:
    """The bases that create is about to copy, as disks that are only read: who writes to one spoils the copy."""
    for disk in guest.disks:
        if disk.base and not os.path.lexists(root + planned.path(guest.name, disk)):
            with contextlib.suppress(OSError):
                yield _as_held(root, f"{disk.name}.base", os.stat(root + disk.base), write=False)


def _look(root: str, guest: Guest, disk: Disk, early: Callable[[], bool]) -> os.stat_result | None:
    """None where the image has yet to be made. Raises OSError, or HostError."""
    if not planned.is_plugged(disk):
        return _look_at_own(root, guest, disk, early)
    return _look_at_hosts(root, f"disk.{disk.name}", File(disk.path, not disk.read_only, 0, disk.format))


def look_late(root: str, about: str, source: File) -> Held:
    """The disk that the TOML has at `about`, for attach: it was not there at setup, and systemd has waited since.

    Raises HostError.
    """
    try:
        found = _look_at_hosts(root, about, source)
    except OSError as error:
        raise HostError(f"{about}: {source.path}: cannot open: {error.strerror}") from None
    return _as_held(root, about.removeprefix("disk."), found, write=source.write)


def _look_at_hosts(root: str, about: str, source: File) -> os.stat_result:
    """Raises OSError, or HostError, for what `source` cannot be."""
    found = os.stat(root + source.path)
    _check_kind(about, source.path, found.st_mode)
    if not os.access(root + source.path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        descriptor = opening.open_file(source._replace(write=False, direct=False), root)
    except HostError as error:
        raise HostError(f"{about}: {error.what}", error.hint) from None
    os.close(descriptor)
    if source.write:
        _check_unused(root, about, source.path, found)
    return found


def _look_at_own(root: str, guest: Guest, disk: Disk, early: Callable[[], bool]) -> os.stat_result | None:
    """Its directory is the guest's own: where a link there leads is nobody's business."""
    path = planned.path(guest.name, disk)
    try:
        found = os.lstat(root + path)
    except FileNotFoundError:
        if disk.base:
            _check_base(root, disk, early)
        return None
    if stat.S_ISREG(found.st_mode) and not disk.read_only:
        _check_unused(root, f"disk.{disk.name}", path, found)
    return found


def _check_kind(about: str, path: str, mode: int) -> None:
    """A path below /dev is a device for the generator, which asks no host, and any other a file."""
    if stat.S_ISBLK(mode) and not hostpaths.is_device(path):
        raise HostError(f"{about}: {path} leads to a block device", "name the device itself, by a path below /dev")
    if stat.S_ISREG(mode) and hostpaths.is_device(path):
        raise HostError(f"{about}: {path} is a file, not a device", "move it out of /dev")


def _check_unused(root: str, about: str, path: str, found: os.stat_result) -> None:
    """Opened exclusively, a block device that is mounted, or a part of something else, is busy (open(2), O_EXCL).

    A file is in use so where a loop device is made of it.
    """
    devices = [path] if stat.S_ISBLK(found.st_mode) else identity.loops(root, identity.of(found))
    for device in devices:
        try:
            os.close(os.open(root + device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                what = f"{about}: {path} is in use by the host itself: mounted, or a part of something"
                raise HostError(what, f"lsblk {device} shows by what") from None
            if device == path:
                raise


def _check_base(root: str, disk: Disk, early: Callable[[], bool]) -> None:
    """create looks again, as attach does, when systemd has waited for its mount."""
    key = f"disk.{disk.name}.base"
    if not os.path.exists(root + disk.base) and early():
        return
    readable.check(key, disk.base, root)
    descriptor = os.open(root + disk.base, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        headers.check(descriptor, disk.base, disk.base_format)
        size = headers.size(descriptor, disk.base, disk.base_format)
    except HostError as error:
        raise HostError(f"{key}: {error.what}", error.hint) from None
    finally:
        os.close(descriptor)
    images.check_fits(f"disk.{disk.name}", disk.size, disk.base, size)


def problems(root: str, guest: Guest) -> Iterator[Problem]:
    """What the start of `guest` would be refused for, and an image that is not as large as the file has it."""
    held = []
    for disk in guest.disks:
        try:
            found = _look(root, guest, disk, lambda: False)
        except HostError as error:
            key = "base" if error.what.startswith(f"disk.{disk.name}.base: ") else "path"
            what = error.what.removeprefix(f"disk.{disk.name}.base: ").removeprefix(f"disk.{disk.name}: ")
            yield Problem(("disk", disk.name, key), what, error.hint, at_key=False, severity="warning")
        except PermissionError:
            pass  # check may be run by anybody
        except OSError as error:
            what = f"{disk.path}: {error.strerror}"
            yield Problem(("disk", disk.name, "path"), what, "", at_key=False, severity="warning")
        else:
            if found:
                held.append(_as_held(root, disk.name, found, write=not disk.read_only))
            if found and disk.size and not planned.is_plugged(disk):
                yield from _other_size(root, guest, disk)
    yield from _not_apart(held)
    try:
        _firmware(root, guest)
    except HostError as error:
        what = error.what.partition(": ")[2]
        yield Problem(("machine", "firmware"), what, error.hint, at_key=False, severity="warning")


def _not_apart(held: Sequence[Held]) -> Iterator[Problem]:
    try:
        refusals.check_apart(held)
    except Refusal as error:
        key, _, what = error.what.partition(": ")
        yield Problem((*key.split("."), "path"), what, error.hint, at_key=False, severity="warning")


def _other_size(root: str, guest: Guest, disk: Disk) -> Iterator[Problem]:
    path = planned.path(guest.name, disk)
    try:
        descriptor = os.open(root + path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        headers.check(descriptor, disk.path, disk.format)
        size = headers.size(descriptor, disk.path, disk.format)
    except HostError as error:
        yield Problem(("disk", disk.name, "path"), error.what, error.hint, at_key=False, severity="warning")
    else:
        if size != disk.size:
            what = f"{disk.path} has {sizes.render(size)}, and is left as it is"
            hint = f"with the guest stopped: qemu-img resize -f {disk.format} {path} {sizes.render(disk.size)}"
            yield Problem(("disk", disk.name, "size"), what, hint, at_key=False, severity="warning")
    finally:
        os.close(descriptor)
