# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns the user's terminal while it is connected to a host's serial console."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty

_DETACH = b"\x1d"  # Ctrl-]


def attach(console: socket.socket) -> None:
    """Copies between terminal and console until Ctrl-], the end of input, or the host's end."""
    fd = sys.stdin.fileno()
    terminal = os.isatty(fd)
    if terminal:
        saved = termios.tcgetattr(fd)
        size = os.get_terminal_size(fd)
        print("root shell on the lab host; Ctrl-] ends it\r")
        tty.setraw(fd)
        # A shell is waiting there already: it learns the size of the window, and shows a prompt.
        console.sendall(f" stty rows {size.lines} columns {size.columns}; clear\r".encode())
    try:
        _copy(fd, console)
    finally:
        if terminal:
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)
            print()


def _copy(fd: int, console: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([fd, console.fileno()], [], [])
        if console.fileno() in ready:
            data = console.recv(65536)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if fd in ready:
            typed = os.read(fd, 4096)
            if not typed or _DETACH in typed:
                return
            console.sendall(typed)
