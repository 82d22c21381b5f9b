# SPDX-License-Identifier: LGPL-2.1-or-later
"""The images of the guest's own directory, which create makes before the first start; pure.

The generator writes them as one line of JSON into the guest's drop-in, as it does with plan/plugs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from kvmsup import sizes
from kvmsup.errors import HostError
from kvmsup.model import hostpaths
from kvmsup.model.guest import Guest
from kvmsup.records import NamedTuple

VARIABLE = "KVMSUP_IMAGES"
NVRAM = "nvram.fd"


class Image(NamedTuple):
    """One image: `file` is its name; `size` in bytes, or 0; `base` what it is cloned from, or ""."""

    about: str  # its table in the TOML
    file: str
    format: str  # raw | qcow2
    size: int
    base: str
    base_format: str


def of(guest: Guest) -> Iterator[Image]:
    """The images of `guest`."""
    for disk in guest.disks:
        if not hostpaths.is_absolute(disk.path):
            yield Image(f"disk.{disk.name}", disk.path, disk.format, disk.size, disk.base, disk.base_format)


def wanted(guest: Guest) -> bool:
    """Whether `guest` has a directory of its own, for images or for what its UEFI keeps."""
    return guest.machine.firmware == "uefi" or any(True for _ in of(guest))


def render(images: Iterable[Image]) -> str:
    """The images as one line of ASCII."""
    return json.dumps([list(image) for image in images], separators=(",", ":"))


def parse(text: str) -> tuple[Image, ...]:
    """What `render` made. Raises HostError when it is something else."""
    try:
        return tuple(Image(*row) for row in json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        what = f"{VARIABLE} is not as the generator writes it: {error!r}"
        raise HostError(what, "systemctl daemon-reload") from None


def check_fits(about: str, size: int, base: str, of_base: int) -> None:
    """Raises HostError when a disk of `size` bytes has no room for its base: what is at its end would be cut off."""
    if size and size < of_base:
        what = f"{about}: size = {sizes.render(size)} is less than {base} has, {sizes.render(of_base)}"
        raise HostError(what, f'size = "{sizes.render(of_base)}" or more')
