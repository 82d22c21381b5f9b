# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every way in which the lab, or a command inside it, can fail."""

from __future__ import annotations

from dataclasses import dataclass

_TAIL = 4000


class LabError(Exception):
    """The lab itself is at fault: it cannot be built, started or reached."""


class LabUnavailable(LabError):
    """This machine cannot have a lab (a program or root is missing); tests are skipped with this text."""


class LabPanic(LabError):
    """The lab's kernel panicked. The rig's failure, not the tested program's: repeat on a fresh restore."""


@dataclass(frozen=True)
class Result:
    """What a command left behind: exit status (negative: killed by that signal) and both outputs."""

    rc: int
    stdout: str
    stderr: str


class CommandFailed(Exception):
    """A command in the lab ended with a status other than 0; carries it and both outputs."""

    def __init__(self, command: str, result: Result, reason: str = "") -> None:
        self.command, self.result = command, result
        self.rc, self.stdout, self.stderr = result.rc, result.stdout, result.stderr
        what = reason or f"exit status {result.rc}"
        super().__init__(
            f"{what}: {command}\n--- stdout\n{result.stdout[-_TAIL:]}\n--- stderr\n{result.stderr[-_TAIL:]}"
        )


class CommandTimeout(CommandFailed, TimeoutError):
    """A command in the lab ran longer than allowed and was killed; the outputs are what it wrote until then."""

    def __init__(self, command: str, result: Result, seconds: float) -> None:
        super().__init__(command, result, f"killed after {seconds:g} s")
