# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup freeze GUEST COMMAND: run a command while nothing in the guest writes to its file systems.

A frozen guest must not stay so. The command is run by this process; a second one, the keeper, waits until this one has
ended in whatever way, and thaws. The claim's file is locked meanwhile: a frozen guest that nobody keeps was left so,
and is thawed first.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from kvmsup.cli import show
from kvmsup.effects import agent, claims, configs, observe
from kvmsup.errors import HostError, KvmsupError, QmpError, Refusal

# Everything that the guest has not written so far has to be written out.
_FREEZE_SECONDS = 120.0
_ANSWER_SECONDS = 5.0
_THAW_SECONDS = 30.0


def run(asked: argparse.Namespace) -> int:
    """Freeze, run the command, thaw; returns what the command did, or 1. Raises KvmsupError."""
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        raise KvmsupError("there is no command to run meanwhile", f"such as: kvmsup freeze {asked.guest} lvcreate …")
    return frozen("", asked.guest, _pid(asked.guest), command, as_json=asked.json)


def _pid(guest: str) -> int:
    seen = observe.guests("", [guest])[0]
    if not seen.configured and not seen.claim:
        raise configs.no_guest("", guest)
    if not seen.claim or not seen.pid:
        raise KvmsupError(f"{guest} does not run", f"systemctl start kvm@{guest}")
    if not seen.claim.agent:
        what = f"{guest} has no agent that could freeze it"
        raise KvmsupError(what, "agent = true below [guest], and qemu-guest-agent in the guest; then restart it")
    return seen.pid


def frozen(root: str, guest: str, pid: int, command: Sequence[str], *, as_json: bool) -> int:
    """As `run`, of the guest whose QEMU is `pid`. Raises KvmsupError."""
    with _alone(root, guest), _keeper(lambda: _thaw(root, guest, pid)) as thawed:
        try:
            count = _freeze(root, guest, pid)
        except QmpError as error:
            raise KvmsupError(f"{guest} could not be frozen: {error}") from None
        start = time.monotonic()
        status = _command(command, as_json=as_json)
        seconds = time.monotonic() - start
        well = thawed()
    if as_json:
        show.as_json({"guest": guest, "file_systems": count, "seconds": seconds, "status": status, "thawed": well})
    return status if well else status or 1


def _freeze(root: str, guest: str, pid: int) -> int:
    with agent.connected(root, guest, pid, _ANSWER_SECONDS) as talk:
        talk.deadline = time.monotonic() + _FREEZE_SECONDS
        if agent.frozen(talk):
            print(f"kvmsup: {guest} was left frozen: it is thawed, and frozen again", file=sys.stderr)
            agent.thaw(talk)
        return agent.freeze(talk)


@contextlib.contextmanager
def _alone(root: str, guest: str) -> Iterator[None]:
    """Nobody else freezes the guest; whoever ends lets go of the lock, the keeper as the last."""
    try:
        file = os.open(claims.path(root, guest), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{claims.path(root, guest)}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refusal(f"{guest} is frozen by another kvmsup freeze", "wait until that has ended") from None
    finally:
        os.close(file)


@contextlib.contextmanager
def _keeper(thaw: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """A process that calls `thaw` when this one says so, by what is given, or has ended; that tells whether it did."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    keeper = os.fork()
    if not keeper:
        os.close(writing)
        _keep(reading, thaw)
    os.close(reading)
    told: list[bool] = []

    def thawed() -> bool:
        if not told:
            os.close(writing)
            told.append(os.waitpid(keeper, 0)[1] == 0)
        return told[0]

    try:
        yield thawed
    finally:
        thawed()


def _keep(reading: int, thaw: Callable[[], bool]) -> None:
    """The keeper's life. It ends with what ends nobody else: Ctrl-C and a closed terminal are not for it."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        os.read(reading, 1)  # ends when nobody has the other end any more
        status = 0 if thaw() else 1
    finally:
        os._exit(status)


def _thaw(root: str, guest: str, pid: int) -> bool:
    """Thaw what is frozen; whether nothing is afterwards."""
    try:
        with agent.connected(root, guest, pid, _THAW_SECONDS) as talk:
            if agent.frozen(talk):
                agent.thaw(talk)
        return True
    except QmpError as error:
        said = f"kvmsup: {guest} may still be frozen: {error}\n  hint: kvmsup freeze {guest} true tries again"
        print(said, file=sys.stderr, flush=True)
        return False


def _command(command: Sequence[str], *, as_json: bool) -> int:
    """What the command returned, as a shell tells it. Raises KvmsupError when there is no such command."""
    try:
        # With --json standard output is ours.
        done = subprocess.run(command, check=False, stdout=sys.stderr.fileno() if as_json else None)
    except OSError as error:
        raise KvmsupError(f"{command[0]}: {error.strerror}") from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
