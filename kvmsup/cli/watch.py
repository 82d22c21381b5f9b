# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a verb shows, again and again: in place on a terminal, a line of JSON each time for programs.

The terminal is on its other screen meanwhile and is as it was afterwards, whatever ends this but kill -9. The modes
are those of xterm's ctlseqs; a terminal passes over those that it does not know.
"""

from __future__ import annotations

import contextlib
import json as notation
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from kvmsup.cli import show
from kvmsup.errors import KvmsupError

# The other screen; no cursor; no wrapping of lines that are wider than they seem.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
# All of a frame at once, where the terminal knows how.
_BEGIN, _END = "\x1b[?2026h\x1b[H", "\x1b[J\x1b[?2026l"
_REST_OF_LINE = "\x1b[K"
_QUIT = (b"q", b"Q")


class _Told(Exception):
    """A signal that ends this program, which has a terminal to put in order first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(look: Callable[[], show.Look], seconds: float, *, json: bool) -> int:
    """Show `look()` every `seconds`, until Ctrl-C. Raises KvmsupError where even the first look fails."""
    if not json and not (show.on_terminal() and os.environ.get("TERM", "dumb") != "dumb"):
        hint = "with --json each look is a line; watch(1) repeats any command"
        raise KvmsupError("watching draws on a terminal, and standard output is none that can be drawn on", hint)
    first = look()
    if json:
        return _lines(look, first, seconds)
    try:
        with _screen() as (keys, draw):
            _frames(look, first, seconds, keys, draw)
    except KeyboardInterrupt:
        pass
    except _Told as told:
        return 128 + told.number
    return 0


def _lines(look: Callable[[], show.Look], found: show.Look | None, seconds: float) -> int:
    """A line each time; what cannot be found out for once is told on standard error."""
    due = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if found:
                print(notation.dumps(found.value), flush=True)
            due = _next(due, seconds)
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                found = look()
            except KvmsupError as error:
                found = None
                print(f"kvmsup: {error}", file=sys.stderr)
    return 0


def _next(due: float, seconds: float) -> float:
    """When to look again: in step, but never at once because one look has taken longer than that."""
    return max(due + seconds, time.monotonic() + seconds / 2)


def _frames(
    look: Callable[[], show.Look], found: show.Look, seconds: float, keys: _Keys, draw: Callable[[str], None]
) -> None:
    lines, due = found.lines, time.monotonic()
    while True:
        size = _size()
        head = show.dimmed(f"every {seconds:g} s · {time.strftime('%H:%M:%S')} · q or Ctrl-C ends")
        draw(frame([head, *lines], *size))
        due = _next(due, seconds)
        while (left := due - time.monotonic()) > 0 and size == _size():
            if keys.pressed(left):
                return
        try:
            lines = look().lines
        except KvmsupError as error:
            lines = f"kvmsup: {error}".splitlines()


def _size() -> tuple[int, int]:
    """Columns and rows; those of a VT100 where the terminal does not know, as on a serial line."""
    with _while_it_is_there():
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return (columns, rows) if columns and rows else (80, 24)


@contextlib.contextmanager
def _while_it_is_there() -> Iterator[None]:
    """A terminal that goes without a signal, as below nohup(1), ends this as the signal would."""
    try:
        yield
    except OSError:
        raise _Told(signal.SIGHUP) from None


def frame(lines: Sequence[str], columns: int, rows: int) -> str:
    """What draws `lines` over whatever is there; those that do not fit are counted."""
    shown = list(lines[:rows])
    if len(lines) > rows:
        shown[-1] = f"({len(lines) - rows + 1} more lines)"
    return _BEGIN + "\r\n".join(_cut(line, columns) + _REST_OF_LINE for line in shown) + _END


def _cut(line: str, columns: int) -> str:
    """`line` with as many characters as there are columns; colours take none."""
    pieces = line.split("\x1b[")
    kept, room = [pieces[0][:columns]], columns - len(pieces[0])
    for piece in pieces[1:]:
        colour, _, text = piece.partition("m")
        kept.append(f"\x1b[{colour}m{text[: max(0, room)]}")
        room -= len(text)
    return "".join(kept)


class _Keys:
    """Waits for a key that ends this, or for a signal such as that the window has another size."""

    def __init__(self, wakes: int) -> None:
        self.wakes = wakes
        self.keyboard = sys.stdin.isatty() if sys.stdin else False

    def pressed(self, seconds: float) -> bool:
        """Whether such a key was pressed within `seconds`; a signal, or any other key, ends the wait too."""
        keyboard = sys.stdin.fileno() if self.keyboard else -1
        ready = select.select([self.wakes, *([keyboard] if self.keyboard else [])], [], [], max(0.0, seconds))[0]
        if self.wakes in ready:
            os.read(self.wakes, 512)
        with _while_it_is_there():
            typed = os.read(keyboard, 64) if keyboard in ready else b"-"
        self.keyboard = self.keyboard and bool(typed)
        return any(key in typed for key in _QUIT)


@contextlib.contextmanager
def _screen() -> Iterator[tuple[_Keys, Callable[[str], None]]]:
    """The terminal's other screen, its keys, and what draws there. Ctrl-Z leaves it, and fg comes back to it."""
    terminal = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
    mode = termios.tcgetattr(terminal) if terminal is not None else []

    def enter() -> None:
        _write(_ENTER)
        if terminal is not None:
            tty.setcbreak(terminal, termios.TCSADRAIN)

    def leave() -> None:
        with contextlib.suppress(termios.error, OSError, _Told):  # the terminal is gone
            _write(_LEAVE)
            if terminal is not None:
                termios.tcsetattr(terminal, termios.TCSADRAIN, mode)

    def stopped(number: int, _: object) -> None:
        leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # and here it goes on
        signal.signal(number, stopped)
        enter()

    with _signals(stopped) as wakes:
        enter()
        try:
            yield _Keys(wakes), _write
        finally:
            leave()


@contextlib.contextmanager
def _signals(stopped: Callable[[int, object], None]) -> Iterator[int]:
    """Every signal has its handler; the descriptor can be read when one came."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
        **dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), _end),
        signal.SIGTSTP: stopped,
        signal.SIGWINCH: lambda *_: None,
        signal.SIGCONT: lambda *_: None,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakes = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakes)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _end(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else _Told(number)


def _write(text: str) -> None:
    """All of it in one go, as far as the terminal takes it."""
    rest = memoryview(text.encode(sys.stdout.encoding or "ascii", sys.stdout.errors or "backslashreplace"))
    with _while_it_is_there():
        while rest:
            try:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
            except BlockingIOError:  # somebody else has made the terminal so
                select.select([], [sys.stdout.fileno()], [])
