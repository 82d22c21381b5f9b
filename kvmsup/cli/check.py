# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup check: every finding in the host's file and the guests' files, sorted, all at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

from kvmsup.cli import show
from kvmsup.effects import configs, models, sysfs
from kvmsup.errors import ConfigError, Diagnostic, HostError, KvmsupError
from kvmsup.model import config
from kvmsup.model.guest import NAME_RULE, is_name
from kvmsup.model.table import Problem, nearest
from kvmsup.model.topology import Topology


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
    """The findings of `guests`, or of everything. Raises KvmsupError when there is no such guest, or no `root`."""
    if root and not os.path.isdir(root):
        raise KvmsupError(f"--root {root}: no such directory")
    # Below another root the CPUs are another host's.
    topology = sysfs.topology(root) if os.path.exists(f"{root}/sys/devices/system/cpu/online") else None
    if not guests:
        yield from _attempt(configs.HOST_FILE, partial(_host, root, topology))
    for guest in guests or configs.names(root):
        yield from _attempt(configs.guest_file(guest), partial(_guest, guest, root, topology))


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


def _guest(name: str, root: str, topology: Topology | None) -> tuple[Diagnostic, ...]:
    if name == "-":
        return _placed(config.read_guest("guest", "standard input", sys.stdin.buffer.read(), topology), root)
    file = configs.guest_file(name)
    content = configs.read_guest(root, name)
    if content is None:
        near = nearest(name, configs.names(root))
        raise KvmsupError(f"there is no guest {name}: no {file}", f"did you mean {near}?" if near else "")
    if not is_name(name):
        return (Diagnostic(file, 0, 0, f"{name!r} cannot name a guest", NAME_RULE),)
    return _placed(config.read_guest(name, file, content, topology), root)


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


def _placed(read: config.Read, root: str) -> tuple[Diagnostic, ...]:
    """The warnings of a sound file, those that come from its host too.

    This host's QEMU is asked about its CPU: not below another root.
    """
    read.document.problems.extend(_never_merged(read, root))
    if root:
        return tuple(read.document.diagnostics())
    try:
        found = models.problems(read.guest)
    except HostError as error:
        found = [
            Problem(("cpu", "model"), f"not compared with what this host has: {error.what}", error.hint, False, "note")
        ]
    read.document.problems.extend(found)
    return tuple(read.document.diagnostics())
