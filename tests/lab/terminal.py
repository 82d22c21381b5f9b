# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns a host's serial console: always read, and connected to the user's terminal when asked to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator

_DETACH = b"\x1d"  # Ctrl-]


class Console:
    """The tests' end of the console. QEMU itself keeps the log; this end only has to be read.

    Left unread, the emulated UART would soon be full, and the kernel waits 10 ms for each character it then prints.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._show: Callable[[bytes], object] | None = None
        self._over, self._ended = os.pipe()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while data := self._connection.recv(65536):
                if show := self._show:
                    show(data)
        os.close(self._ended)

    def close(self) -> None:
        """Frees what the console holds, except the connection."""
        os.close(self._over)

    def attach(self) -> None:
        """Connects the user's terminal until Ctrl-], the end of input, or the host's end."""
        fd, out = sys.stdin.fileno(), sys.stdout.fileno()
        self._show = lambda data: os.write(out, data)
        with _raw(fd) as size:
            # A shell is waiting there already: it learns the size of the window, and shows a prompt.
            self._connection.sendall(f" stty {size}; clear\r".encode() if size else b"\r")
            while True:
                ready, _, _ = select.select([fd, self._over], [], [])
                typed = os.read(fd, 4096) if fd in ready else b""
                if not typed or _DETACH in typed:
                    break
                self._connection.sendall(typed)
        self._show = None


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[str]:
    """The terminal in raw mode, and its size in stty's words; no size if it is not a terminal."""
    if not os.isatty(fd):
        yield ""
        return
    saved, size = termios.tcgetattr(fd), os.get_terminal_size(fd)
    print("root shell on the lab host; Ctrl-] ends it\r")
    tty.setraw(fd)
    try:
        yield f"rows {size.lines} columns {size.columns}"
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
        print()
