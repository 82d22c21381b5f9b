# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the drop-ins of a guest and who reads them agree on, such as which state of its file is loaded; pure.

It is not in plan/dropin because setup has no need of the rest of that.
"""

from __future__ import annotations

import zlib

from kvmsup.model.guest import Guest

NAME = "50-kvmsup.conf"
LOADED = "KVMSUP_LOADED"

# TimeoutStartSec= of kvm-setup@.service, and the bytes that a slow host reserves in a second on top of that. An
# emulated host was seen to reserve 166M, all of it from caches first.
SETUP_SECONDS, _RESERVED_A_SECOND = 150, 64 << 20


def fingerprint(guest_file: bytes, host_file: bytes) -> str:
    """Tells one state of the configuration from another: it finds edits, it is no defence against forgery."""
    return f"{zlib.crc32(guest_file):08x}{zlib.crc32(host_file):08x}"


def setup_seconds(guest: Guest) -> int:
    """What setup may take once the claims' lock is its own."""
    return SETUP_SECONDS + reserved_seconds(guest)


def reserved_seconds(guest: Guest) -> int:
    """What of that is for the size of its memory."""
    return guest.memory.size // _RESERVED_A_SECOND if guest.memory.page_size else 0
