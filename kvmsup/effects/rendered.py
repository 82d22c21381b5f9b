# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the generator has made of guests' files, kept for the daemon-reloads that follow no edit, which most do.

A generator may write nowhere but below the directories it is given (systemd.generator(7)), so it only reads here;
kvmsup-reload writes, before it loads an edit. An entry counts for the very files, and the kvmsup, that it was made
from. Whatever is wrong with one costs the time to make its drop-ins anew, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Collection, Mapping

import kvmsup
from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.plan import agreed

DIRECTORY = "/var/cache/kvmsup"
# Several times the drop-ins of 4096 pinned vCPUs.
_MOST = 4 << 20


class Source:
    """What all guests' drop-ins are made from beside their own files: the host's file, and our programs."""

    def __init__(self, host_file: bytes) -> None:
        home = os.path.dirname(kvmsup.__file__)
        # They change when a file below is put in another's place, as dpkg does.
        programs = [os.stat(f"{home}/{part}").st_mtime_ns for part in ("model", "plan")]
        self._host_file = host_file
        self._about = f"{kvmsup.__version__} {programs[0]} {programs[1]} {len(host_file)}"

    def key(self, guest: str, guest_file: bytes) -> str:
        """Tells this source, with the file of `guest`, from any other."""
        return f"{self._about} {agreed.fingerprint(guest_file, self._host_file)} {len(guest_file)} {guest}"


def read(root: str, guest: str, wanted: str) -> dict[str, str] | None:
    """The drop-ins of `guest` that were made from what has the key `wanted`, by path; None where there are none."""
    try:
        head, _, body = files.read_bytes(_file(root, guest), _MOST).partition(b"\n")
        if head.decode() != _head(wanted, body):
            return None
        paths_and_texts = body.decode().split("\0")
    except (OSError, UnicodeDecodeError):
        return None
    return dict(zip(paths_and_texts[::2], paths_and_texts[1::2], strict=True))


def write(root: str, guest: str, made_from: str, drop_ins: Mapping[str, str]) -> None:
    """Keep `drop_ins`, made from what has the key `made_from`. Raises HostError, with the entry before it there."""
    body = "\0".join(part for path, text in drop_ins.items() for part in (path, text))
    files.replace(_file(root, guest), f"{_head(made_from, body.encode())}\n{body}")


def forget(root: str, guests: Collection[str]) -> None:
    """Remove the entries of all but `guests`, as far as they can be."""
    with contextlib.suppress(OSError, HostError):
        for name in set(os.listdir(root + DIRECTORY)) - set(guests):
            files.remove(_file(root, name))


def _head(made_from: str, body: bytes) -> str:
    return f"{made_from} {zlib.crc32(body):08x}"


def _file(root: str, guest: str) -> str:
    return f"{root}{DIRECTORY}/{guest}"
