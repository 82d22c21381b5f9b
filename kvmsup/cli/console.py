# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup console GUEST: the terminal, joined to the guest's interactive console, until Ctrl-].

No QEMU up to 10.0 can tell a guest how large the terminal is. What would set it there is a command for a shell, and
nobody knows whether there is a shell at the other end: so it is shown, not sent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import NoReturn

from kvmsup.cli import show
from kvmsup.effects import configs, glance, peers, qmp
from kvmsup.errors import KvmsupError
from kvmsup.model.guest import is_name
from kvmsup.plan import paths
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

# For QEMU to let us in: it does so at once, unless somebody else is, or its main loop hangs.
_ACCEPT_SECONDS = 10.0
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
    if not is_name(asked.guest):  # a path such as ../web would lead elsewhere
        raise configs.no_guest("", asked.guest)
    path = paths.socket(asked.guest, "console")
    leave: bytes = asked.detach_key
    key = f"Ctrl-{chr(leave[0] | 0x40)}" if leave else None
    if asked.json:
        show.as_json({"guest": asked.guest, "console": path, "detach": key})
        return 0
    if sys.stdin is None or sys.stdout is None:
        raise KvmsupError("a console needs standard input and output", "they may be /dev/null, but not closed")
    try:
        with _connected(asked.guest, path, glance.running("", asked.guest).pid) as guest:
            if sys.stdin.isatty():
                print(_greeting(asked.guest, key), file=sys.stderr)
            with _raw_terminal():
                left = _Joint(guest, leave).run()
    except _Told as told:
        return 128 + told.number
    if not left:
        print(f"{asked.guest} has closed its console", file=sys.stderr)
    return 0


def _greeting(guest: str, key: str | None) -> str:
    size = os.get_terminal_size(sys.stdin.fileno())
    leaves = f"; {key} leaves it" if key else ""
    return f"console of {guest}{leaves}; its shell learns the size by: stty rows {size.lines} cols {size.columns}"


def _connected(guest: str, path: str, pid: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        qmp.check_listener(connection, path, pid)
        _wait_until_accepted(connection, guest, path)
    except PermissionError:
        connection.close()
        raise KvmsupError(f"the console of {guest} is for root alone", f"sudo kvmsup console {guest}") from None
    except OSError as error:
        connection.close()
        hint = f"systemctl start kvm@{guest}"
        raise KvmsupError(f"{guest} has no console now: {path}: {error.strerror}", hint) from None
    except KvmsupError:
        connection.close()
        raise
    return connection


def _wait_until_accepted(connection: socket.socket, guest: str, path: str) -> None:
    """QEMU lets one client in; the next one would wait without a word."""
    until = time.monotonic() + _ACCEPT_SECONDS
    while not peers.accepted(connection):
        if other := peers.other_client(path, connection):
            raise KvmsupError(
                f"the console of {guest} is in use by {other.what}", f"leave it there, or kill {other.pid}"
            )
        if time.monotonic() > until:
            raise KvmsupError(f"QEMU of {guest} does not answer on its console", f"kvmsup status {guest}")
        time.sleep(0.01)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key for the guest, and the terminal as it was afterwards, whatever ends this but kill -9."""
    terminal = sys.stdin.fileno()
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if sys.stdin.isatty():
            with _raw(terminal):
                yield
        else:
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    # A shell that has stopped this program has put its own mode back.
    goes_on = signal.signal(signal.SIGCONT, lambda *_: tty.setraw(terminal, termios.TCSADRAIN))
    try:
        tty.setraw(terminal, termios.TCSADRAIN)  # what has been typed ahead is the guest's
        yield
    finally:
        signal.signal(signal.SIGCONT, goes_on)
        with contextlib.suppress(termios.error, OSError):  # the terminal is gone: SIGHUP
            if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
                os.write(sys.stdout.fileno(), _TIDY)
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def _end(number: int, _: object) -> NoReturn:
    raise _Told(number)


class _Joint:
    """Standard input and output, and the guest between them. Whoever is slow holds up nobody else's key to leave."""

    def __init__(self, guest: socket.socket, leave: bytes) -> None:
        self.guest, self.leave = guest, leave
        self.guest.setblocking(False)
        self.pending = bytearray()  # for the guest
        self.typing = sys.stdin.isatty()
        self.open = True  # standard input

    def run(self) -> bool:
        """Copy both ways; returns whether the user left, and not the guest.

        At the end of a standard input that is no terminal the guest's output is still copied.
        """
        keyboard = sys.stdin.fileno()
        while True:
            hears = self.open and (self.typing or len(self.pending) < _MOST_PENDING)
            inputs = [self.guest, keyboard] if hears else [self.guest]
            readable, writable, _ = select.select(inputs, [self.guest] if self.pending else [], [])
            if writable:
                self._send()
            if self.guest in readable and not self._print():
                return False
            if keyboard in readable and self._typed(os.read(keyboard, 4096)):
                return True

    def _send(self) -> None:
        try:
            del self.pending[: self.guest.send(self.pending)]
        except BlockingIOError:
            pass
        except ConnectionError:  # reading will tell
            self.pending.clear()

    def _print(self) -> bool:
        """Whether the guest is still there."""
        try:
            data = self.guest.recv(65536)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
            except BlockingIOError:  # a terminal that somebody else has made so
                select.select([], [sys.stdout.fileno()], [])
        return bool(data)

    def _typed(self, data: bytes) -> bool:
        """Whether `data` has the key to leave; what came before it is still the guest's."""
        before, found, _ = data.partition(self.leave) if self.leave else (data, b"", b"")
        # Only a person's typing can come to more than that here. A guest that takes nothing will not miss it.
        self.pending += before[: max(0, 2 * _MOST_PENDING - len(self.pending))]
        if found:
            self._send()
            return True
        if not data:
            self.open = False
            return self.typing
        return False
