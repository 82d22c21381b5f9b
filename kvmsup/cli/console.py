# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup console GUEST: the terminal, joined to the guest's hvc0, until Ctrl-]."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import NoReturn

from kvmsup.cli import show
from kvmsup.effects import peers
from kvmsup.errors import KvmsupError
from kvmsup.plan import paths

# For QEMU to let us in: it does so at once, unless somebody else is, or its main loop hangs.
_ACCEPT_SECONDS = 5.0
# Typed, and not taken by the guest yet.
_MOST_PENDING = 65536
# What the guest's programs may have left on: odd attributes, scroll regions, the other screen, mouse, pasting (DECSTR
# and DECRST of xterm's ctlseqs).
_TIDY = b"\x1b[!p\x1b[?47l\x1b[?1000;1002;1003;1006;2004l\r\n"


class _Told(Exception):
    """A signal that ends this program, which has a terminal to put in order first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(asked: argparse.Namespace) -> int:
    """Join until the user leaves or the guest ends. Raises KvmsupError when there is no console."""
    path = paths.socket(asked.guest, "console")
    leave: bytes = asked.detach_key
    key = f"Ctrl-{chr(leave[0] | 0x40)}" if leave else None
    if asked.json:
        show.as_json({"guest": asked.guest, "console": path, "detach": key})
        return 0
    try:
        with _connected(asked.guest, path) as guest:
            if sys.stdin.isatty():
                print(_greeting(asked.guest, key), file=sys.stderr)
            with _raw_terminal():
                left = _Joint(guest, leave).run()
    except _Told as told:
        return 128 + told.number
    if not left:
        print(f"{asked.guest} has closed its console", file=sys.stderr)
    return 0


def _connected(guest: str, path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except PermissionError:
        raise KvmsupError(f"the console of {guest} is for root alone", f"sudo kvmsup console {guest}") from None
    except OSError as error:
        hint = f"systemctl start kvm@{guest}"
        raise KvmsupError(f"{guest} has no console now: {path}: {error.strerror}", hint) from None
    return connection


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        print(file=sys.stderr)


def _join(guest: socket.socket) -> None:
    """Copy both ways. At the end of a standard input that is no terminal the guest's output is still copied."""
    inputs: list[object] = [guest, sys.stdin.fileno()]
    while True:
        for ready in select.select(inputs, [], [])[0]:
            if ready is guest:
                data = guest.recv(65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
                continue
            data = os.read(sys.stdin.fileno(), 4096)
            before, leave, _ = data.partition(LEAVE)
            guest.sendall(before)
            if leave:
                return
            if not data:
                inputs.remove(sys.stdin.fileno())
