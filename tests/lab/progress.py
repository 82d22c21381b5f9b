# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns what is shown while something long runs: a line a stage, and a live count on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Writes stages, with the seconds since the beginning, to `out` (standard error if absent)."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._begin = time.monotonic()
        self._live = self._out.isatty()
        self._pending = False

    def stage(self, text: str) -> None:
        """A new stage begins."""
        self._write(f"{self._stamp()}{text}\n")
        self._pending = False

    def count(self, text: str) -> None:
        """How far the present stage is; shown on a terminal only, on one line that is overwritten."""
        if self._live:
            self._write(f"{self._stamp()}{text}")
            self._pending = True

    def _stamp(self) -> str:
        return f"lab {time.monotonic() - self._begin:6.1f} s  "

    def _write(self, text: str) -> None:
        self._out.write(("\r\x1b[K" if self._pending else "") + text)
        self._out.flush()


class Silent(Progress):
    """Shows nothing."""

    def _write(self, text: str) -> None:
        pass
