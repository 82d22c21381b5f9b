# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the drop-ins of a guest and who reads them agree on, such as which state of its file is loaded; pure.

It is not in plan/dropin because setup has no need of the rest of that.
"""

from __future__ import annotations

import zlib

from kvmsup.model.guest import Guest
from kvmsup.records import NamedTuple

NAME = "50-kvmsup.conf"
LOADED = "KVMSUP_LOADED"

# TimeoutStartSec= of kvm-setup@.service, and the bytes that a slow host reserves in a second on top of that. An
# emulated host was seen to reserve 166M, all of it from caches first.
SETUP_SECONDS, _RESERVED_A_SECOND = 150, 64 << 20


def fingerprint(guest_file: bytes, host_file: bytes) -> str:
    """Tells one state of the configuration from another: it finds edits, it is no defence against forgery."""
    return f"{zlib.crc32(guest_file):08x}{zlib.crc32(host_file):08x}"


class Outline(NamedTuple):
    """What `kvmsup list` shows of a guest's file, so that it need not read TOML: that takes longer than the rest."""

    vcpus: int
    memory: int  # bytes
    page_size: int
    ksm: bool
    dedicated: bool
    description: str


def outline(guest: Guest) -> Outline:
    """That of `guest`."""
    memory = guest.memory
    return Outline(
        vcpus=guest.cpu.vcpus,
        memory=memory.size,
        page_size=memory.page_size,
        ksm=memory.ksm,
        dedicated=guest.placement.dedicated,
        description=described(guest.name, guest.description),
    )


def described(name: str, description: str) -> str:
    """Description= of the unit of a guest, which may have a `description` of its own."""
    return f"KVM guest {name}: {description}" if description else f"KVM guest {name}"


def outline_section(guest: Guest) -> list[str]:
    """It as a section of a drop-in, which systemd leaves to others (systemd.unit(5), "Unit File Format")."""
    *numbers, description = outline(guest)._asdict().items()
    return [
        "[X-Kvmsup]",
        *(f"{name}={int(value)}" for name, value in numbers),
        # In quotes, for the blanks at its ends, and as a backslash at the end of a line joins the next one to it.
        f'{description[0]}="{description[1]}"',
    ]


def outline_in(text: str, loaded: str) -> Outline | None:
    """That in a drop-in, which was made from the files with the fingerprint `loaded`; None in one made from others."""
    lines = text.splitlines()
    if f"Environment={LOADED}={loaded}" not in lines or "[X-Kvmsup]" not in lines:
        return None
    told = dict(line.split("=", 1) for line in lines[lines.index("[X-Kvmsup]") + 1 :] if "=" in line)
    try:
        vcpus, memory, page_size, ksm, dedicated = (int(told[name]) for name in Outline._fields[:-1])
        return Outline(vcpus, memory, page_size, bool(ksm), bool(dedicated), told["description"][1:-1])
    except (KeyError, ValueError):  # an older kvmsup's
        return None


def setup_seconds(guest: Guest) -> int:
    """What setup may take once the claims' lock is its own."""
    return SETUP_SECONDS + reserved_seconds(guest)


def reserved_seconds(guest: Guest) -> int:
    """What of that is for the size of its memory."""
    return guest.memory.size // _RESERVED_A_SECOND if guest.memory.page_size else 0
