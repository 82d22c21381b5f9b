# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup freeze GUEST COMMAND: run a command while nothing in the guest writes to its file systems.

A frozen guest must not stay so. The command is run by this process; a second one, the keeper, waits until this one has
ended in whatever way, and thaws. The guest's directory is locked meanwhile: a frozen guest that nobody keeps was left
so, and is thawed first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from kvmsup.cli import show
from kvmsup.effects import agent, glance, proc
from kvmsup.errors import HostError, KvmsupError, QmpError, Refusal
from kvmsup.plan import paths
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

# Everything that the guest has not written so far has to be written out.
_FREEZE_SECONDS = 120.0
_ANSWER_SECONDS = 5.0
# An agent that is still freezing, for somebody who has given up on it, answers nobody else before it is done.
_THAW_SECONDS = 600.0
# Of that, for as long as somebody waits for the keeper.
_WAIT_SECONDS = 30.0
# What the keeper is told: that the agent may have been asked to freeze, and that something has been frozen.
_ASKED, _FROZEN = b"a", b"f"


def run(asked: argparse.Namespace) -> int:
    """Freeze, run the command, thaw; returns what the command did, or 1. Raises KvmsupError."""
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        raise KvmsupError("there is no command to run meanwhile", f"such as: kvmsup freeze {asked.guest} lvcreate …")
    return frozen("", asked.guest, _pid(asked.guest), command, as_json=asked.json)


def _pid(guest: str) -> int:
    seen = glance.running("", guest)
    if not (seen.claim and seen.claim.agent):
        what = f"{guest} has no agent that could freeze it"
        raise KvmsupError(what, "agent = true below [guest], and qemu-guest-agent in the guest; then restart it")
    return seen.pid


def frozen(root: str, guest: str, pid: int, command: Sequence[str], *, as_json: bool) -> int:
    """As `run`, of the guest whose QEMU is `pid`. Raises KvmsupError."""
    with _alone(root, guest), _keeper(guest, lambda told: _thaw(root, guest, pid, told)) as keeper:
        try:
            count = _freeze(root, guest, pid, keeper)
        except QmpError as error:
            raise KvmsupError(f"{guest} could not be frozen: {error}") from None
        start = time.monotonic()
        status = _command(command, as_json=as_json)
        seconds = time.monotonic() - start
        well = keeper.thawed()
    if as_json:
        show.as_json({"guest": guest, "file_systems": count, "seconds": seconds, "status": status, "thawed": well})
    return status if well else status or 1


def _freeze(root: str, guest: str, pid: int, keeper: _Keeper) -> int:
    with agent.connected(root, guest, pid, _ANSWER_SECONDS) as talk:
        talk.deadline = time.monotonic() + _FREEZE_SECONDS
        keeper.tell(_ASKED)
        if agent.frozen(talk):
            print(f"kvmsup: {guest} was left frozen: it is thawed, and frozen again", file=sys.stderr)
            agent.thaw(talk)
        count = agent.freeze(talk)
        if count:
            keeper.tell(_FROZEN)
        return count


@contextlib.contextmanager
def _alone(root: str, guest: str) -> Iterator[None]:
    """Nobody else freezes the guest; whoever ends lets go of the lock, the keeper as the last.

    What is locked stays for as long as the guest's unit: the claim's file is another one after a reload.
    """
    path = f"{root}{paths.RUNTIME}/{guest}"
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refusal(f"{guest} is frozen by another kvmsup freeze", "wait until that has ended") from None
    finally:
        os.close(directory)


class _Keeper:
    """The process that thaws, as seen from the one that freezes."""

    def __init__(self, guest: str, pid: int, pipe: int, thaw: Callable[[bytes], bool]) -> None:
        self._guest, self._pid, self._pipe, self._thaw = guest, pid, pipe, thaw
        self._told = b""
        self._well: bool | None = None

    def tell(self, what: bytes) -> None:
        """Have it know, whatever becomes of this process."""
        self._told += what
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._pipe, what)

    def thawed(self) -> bool:
        """Have it thaw and wait until it has, for a while, or do so in its place; whether all was well."""
        if self._pipe >= 0:
            pipe, self._pipe = self._pipe, -1
            os.close(pipe)
        if self._well is None:
            if proc.has_ended(self._pid, _WAIT_SECONDS):
                status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
                self._well = status == 0 if status >= 0 else self._thaw(self._told)
            else:
                said = f"the agent has not answered for {_WAIT_SECONDS:.0f} s; process {self._pid} goes on trying"
                print(f"kvmsup: {self._guest} may still be frozen: {said}", file=sys.stderr)
                self._well = False
        return self._well


@contextlib.contextmanager
def _keeper(guest: str, thaw: Callable[[bytes], bool]) -> Iterator[_Keeper]:
    """A process that calls `thaw` with what it has been told, when this one says so or has ended.

    With Ctrl-C nobody waits for it, and it goes on.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    if sys.stdout:  # there is none where the descriptor was closed
        sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(writing)
        _keep(reading, thaw)
    os.close(reading)
    keeper = _Keeper(guest, pid, writing, thaw)
    try:
        yield keeper
    finally:
        keeper.thawed()


def _keep(reading: int, thaw: Callable[[bytes], bool]) -> NoReturn:
    """The keeper's life. It ends with what ends nobody else: Ctrl-C and a closed terminal are not for it."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        told = b""
        while data := os.read(reading, 16):  # ends when nobody has the other end any more
            told += data
        status = 0 if thaw(told) else 1
    finally:
        os._exit(status)


def _thaw(root: str, guest: str, pid: int, told: bytes) -> bool:
    """Thaw what is frozen; whether it was so until now, and is no longer."""
    if not told:
        return True
    try:
        with agent.connected(root, guest, pid, _THAW_SECONDS) as talk:
            still = agent.frozen(talk)
            if still or _FROZEN in told:
                agent.thaw(talk)
        if still or _FROZEN not in told:
            return True
        said = f"{guest} was thawed by somebody else meanwhile: what has been made of its disks may not be whole"
    except QmpError as error:
        said = f"{guest} may still be frozen: {error}\n  hint: kvmsup freeze {guest} true tries again"
        if proc.has_ended(pid):
            said = f"{guest} has ended while it was frozen"
    print(f"kvmsup: {said}", file=sys.stderr, flush=True)
    return False


def _command(command: Sequence[str], *, as_json: bool) -> int:
    """What the command returned, as a shell tells it. Raises KvmsupError when there is no such command."""
    try:
        # With --json standard output is ours.
        done = subprocess.run(command, check=False, stdout=sys.stderr.fileno() if as_json else None)
    except OSError as error:
        raise KvmsupError(f"{command[0]}: {error.strerror}") from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
