# SPDX-License-Identifier: LGPL-2.1-or-later
"""The UEFI firmware of this host's QEMU packages, by their descriptors (qemu docs/interop/firmware.json)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from kvmsup.effects import files, readable
from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

# The administrator's, which replace those of the same name, and the packages'.
DIRECTORIES = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
_MOST = 1 << 20
# What goes into an environment file and from there into QEMU's command line.
_PLAIN = re.compile(r"/[A-Za-z0-9/._+-]+")
# Needs a machine with SMM, or refuses whatever nobody has signed.
_UNWANTED = {"requires-smm", "secure-boot", "enrolled-keys"}


class Firmware(NamedTuple):
    """Paths: the program, which all guests share, and what a guest's own NVRAM begins as."""

    code: str
    nvram: str


def find(root: str, machine: str) -> Firmware:
    """The UEFI firmware for that type of machine, the first in the order of the descriptors' names.

    Raises HostError when there is none, or that one's files are hidden from the guest's sandbox.
    """
    for path in _descriptors(root):
        found = _firmware(path, machine)
        if found and all(os.path.isfile(root + file) for file in found):
            for file in found:
                readable.check_shown("machine.firmware", file, root)
            return found
    what = f'machine.firmware = "uefi": no UEFI firmware for {machine} in {DIRECTORIES[1]}'
    raise HostError(what, "apt install ovmf")


def _descriptors(root: str) -> Iterator[str]:
    """By name; an administrator's empty file hides the package's."""
    first: dict[str, str] = {}
    for directory in DIRECTORIES:
        try:
            names = os.listdir(root + directory)
        except OSError:
            continue
        for name in names:
            if name.endswith(".json"):
                first.setdefault(name, f"{root}{directory}/{name}")
    return (path for _, path in sorted(first.items()))


def _firmware(path: str, machine: str) -> Firmware | None:
    """What the descriptor at `path` offers to `machine`; None too where it is not as it should be."""
    try:
        found = json.loads(files.read_bytes(path, _MOST))
        if "uefi" in found["interface-types"] and not _UNWANTED & set(found["features"]):
            return _of(found["mapping"]) if _suits(found["targets"], machine) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _suits(targets: list[Any], machine: str) -> bool:
    """An alias, such as q35, is told by its kind alone."""
    from fnmatch import fnmatchcase  # only guests with UEFI get here

    version = {"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(machine, machine)
    ours = [target for target in targets if target["architecture"] == "x86_64"]
    return any(fnmatchcase(version, pattern) for target in ours for pattern in target["machines"])


def _of(mapping: dict[str, Any]) -> Firmware | None:
    if mapping["device"] != "flash" or mapping.get("mode", "split") != "split":
        return None
    parts = (mapping["executable"], mapping["nvram-template"])
    if any(part["format"] != "raw" or not _PLAIN.fullmatch(part["filename"]) for part in parts):
        return None
    return Firmware(*(part["filename"] for part in parts))
