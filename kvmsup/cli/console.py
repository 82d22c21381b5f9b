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
import tty
from collections.abc import Iterator

from kvmsup.cli import show
from kvmsup.errors import KvmsupError
from kvmsup.plan import qemu

LEAVE = b"\x1d"  # Ctrl-]


def run(asked: argparse.Namespace) -> int:
    """Join until the user leaves or the guest ends. Raises KvmsupError when there is no console."""
    path = qemu.socket(asked.guest, "console")
    if asked.json:
        show.as_json({"guest": asked.guest, "console": path, "detach": "Ctrl-]"})
        return 0
    with _connected(asked.guest, path) as guest:
        if sys.stdin.isatty():
            print(f"console of {asked.guest}; Ctrl-] leaves it", file=sys.stderr)
        with _raw_terminal():
            _join(guest)
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
