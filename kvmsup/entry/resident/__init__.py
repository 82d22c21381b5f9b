# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the supervisor does for the host while guests run: one module a task, each with its own sense of time."""

from __future__ import annotations

from typing import Protocol


class Task(Protocol):
    """One of several that take turns in one thread, so each turn is short."""

    def job_finished(self, unit: str) -> None:
        """A job of `unit` is finished: a claim may have come or gone."""

    def shaken(self, what: str, /) -> None:
        """`what` has happened, such as "cpu3 offline" or "reload": the host may not be what it was."""

    def due(self) -> float | None:
        """When `act` wants to be called next, on time.monotonic(); None while there is nothing to do."""

    def act(self) -> None:
        """Take a turn. Raises KvmsupError, which is told and ends nothing."""
