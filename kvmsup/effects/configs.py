# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration files: where they are, and their bytes."""

from __future__ import annotations

import os

from kvmsup.effects import files
from kvmsup.errors import HostError, KvmsupError

DIRECTORY = "/etc/kvmsup"
HOST_FILE = "/etc/kvmsup.toml"
# Several times what 4096 pinned vCPUs take: nothing that lies there may hold up the boot.
MOST = 256 << 10


def guest_file(guest: str) -> str:
    """The file of `guest`, as messages and units name it."""
    return f"{DIRECTORY}/{guest}.toml"


def names(root: str) -> list[str]:
    """The names of all *.toml below /etc/kvmsup, sorted, whether or not they can name a guest; none without it.

    Raises HostError when it cannot be read.
    """
    try:
        found = os.listdir(f"{root}{DIRECTORY}")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"{DIRECTORY}: cannot read: {error.strerror}") from None
    # A dot in front is an editor's scratch file.
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml") and name[0] != ".")


def nearest(root: str, guest: str) -> str:
    """The other guest that `guest` most likely means, or "". A link that leads nowhere has the very name."""
    from kvmsup.model import table  # only errors need it, and setup reads configurations at every start

    return table.nearest(guest, [name for name in names(root) if name != guest])


def no_guest(root: str, guest: str) -> KvmsupError:
    """What to raise where `guest` is neither configured nor running: with the nearest name that is."""
    near = nearest(root, guest)
    return KvmsupError(
        f"there is no guest {guest}", f"did you mean {near}?" if near else "kvmsup list shows those there are"
    )


def read_guest(root: str, guest: str) -> bytes | None:
    """The bytes of the guest's file, None where there is none. Raises HostError when it cannot be read."""
    return _read(root, guest_file(guest))


def read_host(root: str) -> bytes:
    """The bytes of the host's file, none where there is no file. Raises HostError when it cannot be read."""
    return _read(root, HOST_FILE) or b""


def _read(root: str, file: str) -> bytes | None:
    try:
        content = files.read_bytes(root + file, MOST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{file}: cannot read: {error.strerror}") from None
    return bounded(file, content)


def bounded(file: str, content: bytes) -> bytes:
    """`content`, of which no more than MOST + 1 bytes were read. Raises HostError for more than MOST."""
    if len(content) > MOST:
        raise HostError(f"{file}: cannot read: it has over {MOST >> 10} KiB")
    return content
