# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tells one disk from another, however it is named: links and mounts give one file many paths."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from kvmsup.effects import files


def of(found: os.stat_result) -> str:
    """`found` of a file or block device, in digits and colons: its device, and of a file its inode."""
    if stat.S_ISBLK(found.st_mode):
        return f"block:{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return f"file:{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}"


def beneath(root: str, identity: str) -> tuple[str, ...]:
    """What the disk `identity` lies on, by their identities, and what those lie on: none of a file.

    Of a partition the whole device, of a mapping (LVM, RAID) the devices that it is made of, of a loop device its file
    (Documentation/ABI/stable/sysfs-block and testing/sysfs-block-loop).
    """
    found: list[str] = []
    left = [identity]
    while left:
        for one in _directly_beneath(root, left.pop()):
            if one not in found:
                found.append(one)
                left.append(one)
    return tuple(found)


def _directly_beneath(root: str, identity: str) -> Iterator[str]:
    kind, _, number = identity.partition(":")
    if kind != "block":
        return
    directory = os.path.realpath(f"{root}/sys/dev/block/{number}")
    try:
        if os.path.exists(f"{directory}/partition"):
            yield f"block:{files.read(f'{directory}/../dev')}"
        if os.path.isdir(f"{directory}/slaves"):
            for name in sorted(os.listdir(f"{directory}/slaves")):
                yield f"block:{files.read(f'{directory}/slaves/{name}/dev')}"
        if os.path.exists(f"{directory}/loop/backing_file"):
            yield of(os.stat(root + files.read(f"{directory}/loop/backing_file")))
    except OSError:
        return  # it is being taken apart, or its file has no name any more


def loops(root: str, identity: str) -> list[str]:
    """The loop devices that are made of the file `identity`, by their paths."""
    found = []
    # Without sysfs there are none; one may also go while it is looked at.
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(f"{root}/sys/block")):
            if name.startswith("loop") and os.path.exists(f"{root}/sys/block/{name}/loop/backing_file"):
                number = files.read(f"{root}/sys/block/{name}/dev")
                found += [f"/dev/{name}"] if identity in beneath(root, f"block:{number}") else []
    return found
