# SPDX-License-Identifier: LGPL-2.1-or-later
"""The few questions to systemd that short-lived programs have, asked through systemctl.

A subprocess costs less than importing a D-Bus library; what stays resident uses kvmsup.effects.systemd.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from kvmsup.errors import HostError
from kvmsup.records import NamedTuple


class Loaded(NamedTuple):
    """A unit that systemd has loaded, at a glance."""

    active: str
    sub: str
    description: str


class Unit(NamedTuple):
    """A unit's state, and the type of its queued or running job: start, stop, restart, …, or ""."""

    active: str
    sub: str
    job: str

    @property
    def idle(self) -> bool:
        """Whether it is down with nothing under way."""
        return self.active in ("inactive", "failed") and not self.job


class Question:
    """What systemctl is asked, and meanwhile the asker may do something else: a process that runs from now on.

    Without subprocess, whose import takes as long as Python itself does to start. Raises HostError.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        (self._printed, output), (self._told, complaint) = os.pipe(), os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, complaint, 2),
        ]
        try:
            # Escape sequences are for terminals, but SYSTEMD_COLORS= may want them in a pipe, too.
            environment = os.environ | {"SYSTEMD_COLORS": "0"}
            self._pid = os.posix_spawnp("systemctl", ["systemctl", *arguments], environment, file_actions=actions)
        except OSError as error:
            self._close()
            raise HostError(f"systemctl cannot be run: {error.strerror}") from None
        finally:
            os.close(output)
            os.close(complaint)

    def answer(self) -> str:
        """What it prints, told once. Raises HostError with its complaint."""
        try:
            found, wrong = _read_both(self._printed, self._told)
        finally:
            self._close()
        if self._status():
            raise HostError(f"systemctl {' '.join(self._arguments)}: {wrong.strip()}")
        return found

    def dismiss(self) -> None:
        """End it without an answer."""
        self._close()
        try:
            os.kill(self._pid, 9)  # signal.SIGKILL; the module imports enum
        except ProcessLookupError:
            pass
        self._status()

    def _status(self) -> int:
        try:
            return os.waitpid(self._pid, 0)[1]
        except ChildProcessError:  # whoever started us ignores SIGCHLD, and nobody is told (wait(2))
            return 0

    def _close(self) -> None:
        os.close(self._printed)
        os.close(self._told)


def _systemctl(*arguments: str) -> str:
    """What systemctl prints. Raises HostError with its complaint."""
    return Question(*arguments).answer()


def _read_both(*pipes: int) -> list[str]:
    """All that comes out of each: who reads one to its end first waits for who waits for room in the other.

    With SYSTEMD_LOG_LEVEL=debug systemctl logs more than a pipe holds (pipe(7)).
    """
    found = {pipe: bytearray() for pipe in pipes}
    left = [*pipes]
    while left:
        for pipe in select.select(left, [], [])[0]:
            piece = os.read(pipe, 1 << 16)
            found[pipe] += piece
            if not piece:
                left.remove(pipe)
    return [text.decode(errors="replace") for text in found.values()]


def show(names: Sequence[str], properties: Sequence[str]) -> dict[str, dict[str, str]]:
    """The `properties` of each unit of `names`. Raises HostError when systemd does not answer."""
    if not names:
        return {}
    asked = ",".join(("Id", *properties))
    found = {}
    for block in _systemctl("show", "--property", asked, "--", *names).split("\n\n"):
        values = dict(line.split("=", 1) for line in block.strip().splitlines() if "=" in line)
        if values:
            found[values.pop("Id")] = values
    return found


def ask_for_guests() -> Question:
    """The question for all units of guests that systemd has loaded: one answer, whatever their number.

    `show` takes milliseconds for each unit, as systemd tells it all properties.
    """
    return Question("list-units", "--all", "--full", "--plain", "--legend=yes", "--", "kvm@*.service")


def loaded(answer: str) -> dict[str, Loaded]:
    """The units in an answer to `ask_for_guests`: columns below a head, up to an empty line.

    The head is UNIT LOAD ACTIVE SUB DESCRIPTION, with JOB before the last word while any of the units has a job.
    """
    head, *lines = answer.split("\n")  # a description may have what splitlines() takes for the end of one
    begins = head.find("DESCRIPTION")
    if begins < 0:  # there are none
        return {}
    found = {}
    for line in lines:
        match line.split(None, 4):
            case [name, _, active, sub, *_]:
                found[name] = Loaded(active, sub, line[begins:])
            case _:
                break
    return found


def units(names: Sequence[str]) -> dict[str, Unit]:
    """State and job of each of `names`. Raises HostError when systemd does not answer."""
    queued = jobs()
    return {
        name: Unit(values["ActiveState"], values["SubState"], queued.get(name, ""))
        for name, values in show(names, ("ActiveState", "SubState")).items()
    }


def jobs() -> dict[str, str]:
    """The type of the queued or running job by unit, from lines of `JOB UNIT TYPE STATE`. Raises HostError."""
    lines = _systemctl("list-jobs", "--full", "--plain", "--no-legend").splitlines()
    return {words[1]: words[2] for words in map(str.split, lines) if len(words) >= 4}


def probably_active(root: str, unit: str) -> bool:
    """Whether systemd exports an invocation of `unit`: cheap to look at, but only systemctl's word counts."""
    return os.path.lexists(f"{root}/run/systemd/units/invocation:{unit}")


def daemon_reload() -> None:
    """Run the generators and load every unit anew. Raises HostError."""
    _systemctl("daemon-reload")


def start(unit: str) -> None:
    """Start `unit` and wait until it is up. Raises HostError."""
    _systemctl("start", "--", unit)


def set_property(unit: str, assignment: str) -> None:
    """Set a property of `unit` until the next boot. Raises HostError."""
    _systemctl("set-property", "--runtime", "--", unit, assignment)


_SPANS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "month": 2629800.0,
    "y": 31557600.0,
}


def stop_timeout(unit: str) -> float:
    """TimeoutStopSec= of `unit` in seconds; a day where it is infinity. Raises HostError."""
    return _seconds(unit, "TimeoutStopUSec")


def start_timeout(unit: str) -> float:
    """TimeoutStartSec= of `unit` in seconds; a day where it is infinity. Raises HostError."""
    return _seconds(unit, "TimeoutStartUSec")


def _seconds(unit: str, name: str) -> float:
    import re  # whoever presses the power button has it by then, and the others do without

    text = show([unit], [name])[unit][name]
    if text == "infinity":
        return _SPANS["d"]
    # "1min 30s": systemd.time(7), "Displaying time spans".
    return sum(float(number) * _SPANS[unit] for number, unit in re.findall(r"([0-9.]+)([a-z]+)", text))
