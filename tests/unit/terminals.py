# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real terminal (a pty) with a program in it, of which what it draws can be read as a person sees it."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 60.0
_ORDER = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Terminal:
    """The master's end; `shown` is all that the program has written."""

    def __init__(self, pid: int, master: int) -> None:
        self.pid, self.master, self.shown, self.ended = pid, master, "", False
        self.rows = 24
        self.status = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def resize(self, rows: int, columns: int) -> None:
        """As a window manager does it; the kernel tells the program (SIGWINCH)."""
        self.rows = rows
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def mode(self) -> list[object]:
        return termios.tcgetattr(self.master)

    def until(self, what: str, since: int = 0) -> int:
        """Read until `what` is shown behind `since`; where that ends."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (at := self.shown.find(what, since)) < 0:
            assert time.monotonic() < deadline and not self.ended, f"{what!r} is not in {self.shown[since:]!r}"
            self._read(0.2)
        return at + len(what)

    def end(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.ended:
            assert time.monotonic() < deadline, f"it goes on: {self.shown[-500:]!r}"
            self._read(0.2)
        if self.pid:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.pid = 0
        return self.status

    def _read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # nobody has the other end any more
                data = b""
            self.ended = not data
            self.shown += self._decoder.decode(data)

    def screen(self) -> list[str]:
        """The lines that a person would see now, by the few orders that are used; no line may be wrapped."""
        lines, row, column = [""] * self.rows, 0, 0
        for found in _ORDER.finditer(self.shown):
            text, order = found[0], found[2]
            if order == "H":
                row = column = 0
            elif order == "K":
                lines[row] = lines[row][:column]
            elif order == "J":
                lines[row:] = [lines[row][:column], *([""] * (self.rows - row - 1))]
            elif text == "\r":
                column = 0
            elif text == "\n":
                row += 1
                assert row < self.rows, "it scrolls"
            elif not order:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
        return lines


@contextlib.contextmanager
def running(program: str, *words: str, rows: int = 24, columns: int = 80, **environment: str) -> Iterator[Terminal]:
    """A Python `program`, in a terminal of its own that is its controlling one."""
    pid, master = pty.fork()
    if not pid:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.chdir(ROOT)
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        os.execve(sys.executable, [sys.executable, "-c", program, *words], {**kept, "TERM": "xterm", **environment})
    terminal = Terminal(pid, master)
    terminal.rows = rows
    try:
        yield terminal
    finally:
        if terminal.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
        os.close(master)
