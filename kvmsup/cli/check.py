# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup check: every finding in the host's file and the guests' files, sorted, all at once."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial

from kvmsup.cli import show
from kvmsup.effects import configs, outdated, sysfs
from kvmsup.errors import ConfigError, Diagnostic, HostError, KvmsupError
from kvmsup.model import config, nets, unwise
from kvmsup.model.guest import NAME_RULE, Guest, is_name
from kvmsup.model.table import Problem
from kvmsup.model.topology import Topology
from kvmsup.plan.models import worth_asking
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

_STANDARD_INPUT = "standard input"


def run(asked: argparse.Namespace) -> int:
    """Print what was found; 1 when any of it is an error."""
    found = list(findings(asked.guests, asked.root.rstrip("/")))
    wrong = any(one.severity == "error" for one in found)
    if asked.json:
        show.as_json({"ok": not wrong, "diagnostics": [one._asdict() for one in found]})
    else:
        for one in found:
            print(one, file=sys.stderr)
        if not wrong:
            count = len(asked.guests) or len(configs.names(asked.root.rstrip("/")))
            print(f"{count} {'guest is' if count == 1 else 'guests are'} sound")
    return 1 if wrong else 0


def findings(guests: list[str], root: str) -> Iterator[Diagnostic]:
    """The findings of `guests`, or of everything. Raises KvmsupError when there is no `root`."""
    if root and not os.path.isdir(root):
        raise KvmsupError(f"--root {root}: no such directory")
    # Below another root the CPUs are another host's.
    topology = sysfs.topology(root) if os.path.exists(f"{root}/sys/devices/system/cpu/online") else None
    if not guests:
        yield from _attempt(configs.HOST_FILE, partial(_host, root, topology))
    for guest in guests or configs.names(root):
        file, reading = configs.guest_file(guest), partial(_guest, guest, root, topology)
        if guests and guest == "-":  # there may be a file of that name
            file, reading = _STANDARD_INPUT, partial(_standard_input, root, topology)
        yield from _attempt(file, reading)


def _attempt(file: str, reading: Callable[[], tuple[Diagnostic, ...]]) -> tuple[Diagnostic, ...]:
    try:
        return reading()
    except ConfigError as error:
        return error.diagnostics
    except HostError as error:  # it cannot be read; the others can
        return (Diagnostic(file, 0, 0, error.what.removeprefix(f"{file}: "), error.hint),)


def _host(root: str, topology: Topology | None) -> tuple[Diagnostic, ...]:
    config.read_host(configs.HOST_FILE, configs.read_host(root), topology)
    return ()


def _standard_input(root: str, topology: Topology | None) -> tuple[Diagnostic, ...]:
    from kvmsup.cli import stdin  # files are what people ask about

    content = configs.bounded(_STANDARD_INPUT, stdin.read(configs.MOST + 1))
    return _placed(config.read_guest("guest", _STANDARD_INPUT, content, topology), root, topology)


def _guest(name: str, root: str, topology: Topology | None) -> tuple[Diagnostic, ...]:
    file = configs.guest_file(name)
    content = configs.read_guest(root, name)
    if content is None:
        return (_not_there(name, file, root),)
    if not is_name(name):
        return (Diagnostic(file, 0, 0, f"{name!r} cannot name a guest", NAME_RULE),)
    return _placed(config.read_guest(name, file, content, topology), root, topology) + _not_loaded(name, file, root)


def _not_there(name: str, file: str, root: str) -> Diagnostic:
    if os.path.lexists(root + file):
        hint = "mount what it leads to, or remove the link"
        return Diagnostic(file, 0, 0, "leads to a file that is not there", hint)
    near = configs.nearest(root, name)
    hint = f"did you mean {near}?" if near else "kvmsup list shows those there are"
    return Diagnostic(file, 0, 0, f"there is no guest {name}", hint)


# An edit is picked up by itself within this time, where kvmsup-reload.path runs.
_LOADED_SECONDS = 1.0


@cache
def _deadline() -> float:
    return time.monotonic() + _LOADED_SECONDS


def _not_loaded(name: str, file: str, root: str) -> tuple[Diagnostic, ...]:
    """A warning where systemd has not loaded this state of the file, and does not do so by itself."""
    if root or outdated.loaded(root, name) is not False:
        return ()
    while outdated.loaded(root, name) is False:
        if time.monotonic() > _deadline():
            what = "systemd has not loaded this file as it is now: a start would be refused"
            return (Diagnostic(file, 0, 0, what, "systemctl daemon-reload", severity="warning"),)
        time.sleep(_LOADED_SECONDS / 20)
    return ()


def _never_merged(read: config.Read, root: str) -> Iterator[Problem]:
    """That the guest consents to KSM in vain. A host's file that is wrong is told as such, and says nothing here."""
    memory = read.guest.memory
    try:
        policy = config.read_host(configs.HOST_FILE, configs.read_host(root)).ksm
    except KvmsupError:
        return
    if memory.ksm and policy == "never" and not read.guest.filled:
        what = f'has no effect: {configs.HOST_FILE} has ksm.policy = "never"'
        yield Problem(("memory", "ksm"), what, 'ksm = false, or policy = "pressure" there', False, "warning")


def _placed(read: config.Read, root: str, topology: Topology | None) -> tuple[Diagnostic, ...]:
    """The warnings of a sound file, with what only other files tell, and what this host does: not of another root."""
    read.document.problems.extend(unwise.problems(read.guest, topology))
    read.document.problems.extend(nets.doubles(read.guest, _others(root)))
    read.document.problems.extend(_never_merged(read, root))
    if root:
        return tuple(read.document.diagnostics())
    read.document.problems.extend(_of_host(root, read.guest))
    return tuple(read.document.diagnostics())


def _of_host(root: str, guest: Guest) -> Iterator[Problem]:
    """What a start on this host would fail for. Each look is imported by those who have something to look at."""
    if worth_asking(guest.cpu):
        from kvmsup.effects import models

        try:
            yield from models.problems(guest)
        except HostError as error:
            what = f"not compared with what this host has: {error.what}"
            yield Problem(("cpu", "model"), what, error.hint, False, "note")
    if guest.credentials or guest.cloud_init:
        from kvmsup.effects import sources

        yield from sources.problems(root, guest)
    if guest.disks or guest.machine.firmware == "uefi":
        from kvmsup.effects import backing

        yield from backing.problems(root, guest)
    if guest.nets:
        from kvmsup.effects import interfaces

        yield from interfaces.problems(guest)


@cache
def _others(root: str) -> tuple[Guest, ...]:
    """Every guest whose file is sound; what is wrong with the others is told where they are checked themselves."""
    found = []
    for name in filter(is_name, configs.names(root)):
        with contextlib.suppress(KvmsupError):
            found.append(config.read_guest(name, "", configs.read_guest(root, name) or b"").guest)
    return tuple(found)
