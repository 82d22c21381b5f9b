# SPDX-License-Identifier: LGPL-2.1-or-later
"""The header of a disk image: whether it is one, and whether it leads to other files.

A header can name two other files for QEMU to open, a backing file and a data file (qemu docs/interop/qcow2.txt). Who
made the image would choose what QEMU reads and writes, so neither is followed.
"""

from __future__ import annotations

import os
import stat
import struct

from kvmsup.errors import HostError

_MAGIC = b"QFI\xfb"
# magic, version, offset of the backing file's name, …; from version 3 on the incompatible features are at 72.
_HEADER = struct.Struct(">4sIQ")
_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_DATA_FILE = 1 << 2
_SIZE_AT = 24
_VMDK_MAGICS = (b"KDMV", b"COWD")
# Several times what QEMU looks at to tell formats apart (BLOCK_PROBE_BUF_SIZE).
_TEXT_BYTES = 4096


def check(descriptor: int, path: str, format: str) -> None:
    """Raises HostError when `descriptor`, opened at `path`, cannot be a disk of that `format`.

    raw is any file or block device: a guest may write whatever it likes to its own disk.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise HostError(f"{path} is neither a file nor a block device")
    if format != "qcow2":
        return
    try:
        found = os.pread(descriptor, _FEATURES_AT + _FEATURES.size, 0)
    except OSError as error:
        raise HostError(f"{path}: cannot read: {error.strerror}") from None
    if len(found) < _FEATURES_AT + _FEATURES.size or found[:4] != _MAGIC:
        raise HostError(f"{path} is no qcow2 image", 'format = "raw", if it is a raw one')
    _, version, backing = _HEADER.unpack_from(found)
    (features,) = _FEATURES.unpack_from(found, _FEATURES_AT)
    if backing:
        what = f"{path} has a backing file, and what an image names is not opened"
        raise HostError(what, f"qemu-img convert -O qcow2 {path} NEW.qcow2 makes an image of its own")
    if version >= 3 and features & _DATA_FILE:
        what = f"{path} keeps its data in another file, and what an image names is not opened"
        raise HostError(what, f"qemu-img convert -O qcow2 {path} NEW.qcow2 makes an image of its own")


def is_qcow2(descriptor: int) -> bool:
    """Whether an image of the administrator's says that it is one. Raises OSError."""
    return os.pread(descriptor, len(_MAGIC), 0) == _MAGIC


def is_vmdk(descriptor: int) -> bool:
    """Whether QEMU would take it for a VMDK, which may be a text that names files to open. Raises OSError.

    As block/vmdk.c, vmdk_probe, has it, and a little more than that: blank lines are passed over in any form.
    """
    found = os.pread(descriptor, _TEXT_BYTES, 0)
    if found.startswith(_VMDK_MAGICS):
        return True
    lines = (line.strip() for line in found.split(b"\n"))
    return next((line for line in lines if line and not line.startswith(b"#")), b"").startswith(b"version=")


def size(descriptor: int, path: str, format: str) -> int:
    """The size in bytes of the disk in the image or block device `descriptor`, which `check` finds sound.

    Raises HostError.
    """
    try:
        if format == "qcow2":
            return int.from_bytes(os.pread(descriptor, 8, _SIZE_AT))
        return os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        raise HostError(f"{path}: cannot read: {error.strerror}") from None
