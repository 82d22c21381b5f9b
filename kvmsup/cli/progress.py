# SPDX-License-Identifier: LGPL-2.1-or-later
"""How far something is that a person waits for: a bar on a terminal, a line at the beginning and at the end elsewhere.

The bar is tqdm's. It takes longer to import than all of kvmsup, so that is done on a terminal, after the first second.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from kvmsup.records import TYPE_CHECKING
from kvmsup.sizes import mebibytes

if TYPE_CHECKING:
    from typing import Any

Tell = Callable[[int], None]

_FIRST_SECONDS = 1.0


@contextlib.contextmanager
def on_the_way(about: str, start: int, goal: int) -> Iterator[Tell]:
    """Shows on standard error how far `about` is from `start` to `goal` bytes, as it is told, and what came of it."""
    begin, last = time.monotonic(), start
    if not _drawn():
        print(f"{about}: {mebibytes(start)}, on its way to {mebibytes(goal)}", file=sys.stderr, flush=True)
    bar = _Bar(about, start, goal) if _drawn() else None

    def tell(now: int) -> None:
        nonlocal last
        last = now
        if bar:
            bar.tell(now)

    try:
        yield tell
    finally:
        if bar:
            bar.end()
    seconds = time.monotonic() - begin
    print(f"{about}: from {mebibytes(start)} to {mebibytes(last)} in {seconds:.1f} s", file=sys.stderr, flush=True)


def _drawn() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class _Bar:
    """tqdm's, once that is worth it; nothing where it is not installed."""

    def __init__(self, about: str, start: int, goal: int) -> None:
        self.about, self.start, self.goal = about, start, goal
        self.due = time.monotonic() + _FIRST_SECONDS
        self.bar: Any = None

    def tell(self, now: int) -> None:
        if self.bar is None and time.monotonic() >= self.due:
            self.due = float("inf")
            self.bar = _imported(self.about, abs(self.goal - self.start))
        if self.bar is not None:
            # On a way back it stands still: there is no less than nothing.
            done = (now - self.start) * (1 if self.goal > self.start else -1)
            self.bar.update(min(max(done, 0), self.bar.total) - self.bar.n)
            self.bar.refresh()

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _imported(about: str, total: int) -> Any:
    from kvmsup import cli

    cli.packages()
    try:
        import tqdm
    except ImportError:  # it is only recommended
        return None
    # No thread of its own for bars that nobody updates.
    tqdm.tqdm.monitor_interval = 0
    return tqdm.tqdm(
        desc=about,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
    )
