# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal's socket, and what comes over it (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Message = dict[str, list[str]]


class Journal:
    """Takes messages, and keeps their order."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening

    def messages(self) -> list[Message]:
        """What has come since the last call."""
        found = []
        while True:
            try:
                found.append(parse(self.listening.recv(1 << 20)))
            except BlockingIOError:
                return found


@contextmanager
def listening(root: Path) -> Iterator[Journal]:
    """A journal below `root`."""
    path = root / "run/systemd/journal/socket"
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.setblocking(False)
        yield Journal(receiver)


def parse(data: bytes) -> Message:
    """The fields of one message, which all have their length before them."""
    found: Message = {}
    while data:
        name, _, data = data.partition(b"\n")
        size = int.from_bytes(data[:8], "little")
        assert data[8 + size : 9 + size] == b"\n"
        found.setdefault(name.decode(), []).append(data[8 : 8 + size].decode())
        data = data[9 + size :]
    return found
