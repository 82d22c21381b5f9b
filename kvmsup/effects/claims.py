# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ledger's files: one claim a guest in /run/kvmsup/claims, all of them under one lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.model import claim as claim_text
from kvmsup.model.claim import Claim
from kvmsup.model.guest import is_name

RUN = "/run/kvmsup"
_GLANCE_SECONDS = 0.02


def path(root: str, guest: str) -> str:
    """Where the claim of `guest` is, or would be."""
    return f"{root}{RUN}/claims/{guest}.env"


@contextlib.contextmanager
def lock(root: str) -> Iterator[None]:
    """Hold the one lock over claims, pools and slices, waiting for it; the kernel drops it with its holder.

    Raises HostError when there is no place for it.
    """
    with _locked(root, fcntl.LOCK_EX):
        yield


class Busy(HostError):
    """Somebody else holds the lock, for as long as it takes to make hugepages."""


@contextlib.contextmanager
def lock_now(root: str) -> Iterator[None]:
    """Hold the lock as `lock` does, but do not wait. Raises Busy, or HostError."""
    with _locked(root, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextlib.contextmanager
def lock_within(root: str, seconds: float) -> Iterator[None]:
    """Hold the lock as `lock` does, but wait for it no longer than that. Raises Busy, or HostError."""
    until = time.monotonic() + seconds
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(lock_now(root))
                break
            except Busy:
                if time.monotonic() > until:
                    raise
            time.sleep(_GLANCE_SECONDS)
        yield


@contextlib.contextmanager
def _locked(root: str, operation: int) -> Iterator[None]:
    try:
        os.makedirs(f"{root}{RUN}/claims", 0o755, exist_ok=True)
        descriptor = os.open(f"{root}{RUN}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{root}{RUN}: cannot lock the claims: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            raise Busy("somebody else is at the claims") from None
        yield
    finally:
        os.close(descriptor)


def holder(root: str) -> str:
    """Who holds the lock, for people: lines of `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF` (proc(5))."""
    try:
        inode = os.stat(f"{root}{RUN}/lock").st_ino
        lines = [line.split() for line in files.read(f"{root}/proc/locks").splitlines()]
        pid = next(words[4] for words in lines if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode))
        command = files.read(f"{root}/proc/{pid}/cmdline").split("\0")[:-1]  # it ends with one, too
    except (OSError, StopIteration, IndexError):
        return "the claims' lock"
    # python3 …/kvmsup-guest setup web
    return files.printable(f"the claims' lock, which process {pid} has ({' '.join(command[-2:])})"[:200])


def names(root: str) -> list[str]:
    """The guests that have a claim, sorted. Raises HostError when the directory cannot be read."""
    try:
        found = os.listdir(f"{root}{RUN}/claims")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"{root}{RUN}/claims: cannot read: {error.strerror}") from None
    guests = (name.removesuffix(".env") for name in found if name.endswith(".env"))
    return sorted(filter(is_name, guests))


def read_all(root: str) -> dict[str, Claim]:
    """Every claim by guest. Raises HostError when a file is not a claim."""
    found = ((guest, read(root, guest)) for guest in names(root))
    return {guest: claim for guest, claim in found if claim}


def read(root: str, guest: str) -> Claim | None:
    """The claim of `guest`, or None. Raises HostError when its file is not a claim."""
    file = path(root, guest)
    try:
        text = files.read(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{file}: cannot read: {error.strerror}") from None
    # What it stands for is not known, so nobody can be kept off it, nor be given it.
    hint = f"{claim_text.NOBODY_ELSE}: systemctl stop kvm@{guest} kvm-setup@{guest}, then rm {file}"
    try:
        claim = claim_text.parse(text, file)
    except HostError as error:
        raise HostError(error.what, hint) from None
    if claim.guest != guest:
        raise HostError(f"{file} is a claim of another guest", hint)
    return claim


def write(root: str, claim: Claim) -> None:
    """Write or replace the claim as one. Raises HostError."""
    files.replace(path(root, claim.guest), claim_text.render(claim))


def rewrite(root: str, claim: Claim) -> None:
    """As `write`, of a claim that is there and whose unit is down; over it where /run is full. Raises HostError."""
    files.rewrite(path(root, claim.guest), claim_text.render(claim))


def remove(root: str, guest: str) -> None:
    """Remove the claim; that there is none is as good. Raises HostError."""
    files.remove(path(root, guest))
