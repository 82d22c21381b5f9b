# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where QEMU, a guest's sockets and its files are on the host: all that short-lived programs need to know."""

from __future__ import annotations

BINARY = "/usr/bin/qemu-system-x86_64"
RUNTIME = "/run/kvmsup/guests"
STATE = "/var/lib/kvmsup"

# The file in the guest's directory where QEMU says why it ended.
ENDED = "ended"


def socket(guest: str, name: str) -> str:
    """The path of one of the guest's sockets: a monitor, or its console."""
    return f"{RUNTIME}/{guest}/{name}"


def seed(guest: str) -> str:
    """The path of the guest's cloud-init seed. It may hold secrets, so it is in memory and goes with the unit."""
    return f"{RUNTIME}/{guest}/seed.iso"


# A file for each isolated guest that runs, by its name: what had run on its CPUs before it (effects/intrusions).
ISOLATED = "/run/kvmsup/isolated"
