# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a running guest is not what it would be if it were started now: its file, and its QEMU."""

from __future__ import annotations

import functools
import os
import re
import subprocess

from kvmsup.effects import configs, files, running
from kvmsup.errors import KvmsupError
from kvmsup.model import config
from kvmsup.model.guest import Guest, is_name
from kvmsup.plan import agreed, changes
from kvmsup.plan.changes import Change
from kvmsup.plan.paths import BINARY
from kvmsup.records import NamedTuple

_GENERATED = "/run/systemd/generator"
OLDER, ANOTHER = "older", "another"


def configured(root: str, name: str) -> Guest | None:
    """The guest as its file says it, None while that is wrong or gone, or can be none for its name."""
    try:
        content = configs.read_guest(root, name) if is_name(name) else None
        return config.read_guest(name, configs.guest_file(name), content).guest if content is not None else None
    except KvmsupError:
        return None


def changed(root: str, guest: Guest) -> list[Change] | None:
    """What the file of running `guest` says otherwise than what it runs with; None where that is not known."""
    keys = running.read(root, guest.name)
    return None if keys is None else changes.decide(changes.differences(keys, changes.flatten(guest)))


class Qemu(NamedTuple):
    """How a QEMU differs from the installed one: OLDER or ANOTHER, "" where it is that, None where nobody tells.

    `installed` is the version of that, "" where it was not asked or does not tell.
    """

    differs: str | None
    installed: str


def qemu(root: str, pid: int) -> Qemu:
    """The program that QEMU `pid` runs, against the installed one, which is asked for its version if it is another."""
    differs = _differs(root, pid)
    return Qemu(differs, installed_qemu() if differs else "")


def _differs(root: str, pid: int) -> str | None:
    """A package's files keep the times of its build, so the same one installed again is the same."""
    try:
        here, installed = os.stat(f"{root}/proc/{pid}/exe"), os.stat(root + BINARY)
    except OSError:
        return None
    same = (here.st_dev, here.st_ino) == (installed.st_dev, installed.st_ino)
    if same or (here.st_size, here.st_mtime_ns) == (installed.st_size, installed.st_mtime_ns):
        return ""
    return OLDER if here.st_mtime_ns < installed.st_mtime_ns else ANOTHER


@functools.cache
def installed_qemu() -> str:
    """The version of the installed QEMU, such as "10.0.13"; "" where it does not tell."""
    try:
        done = subprocess.run((BINARY, "--version"), capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    found = re.search(r"version (\d[\d.]*)", done.stdout)
    return found[1] if found else ""


def loaded(root: str, name: str) -> bool | None:
    """Whether systemd has loaded the files of guest `name` as they are; None where no systemd has generated units."""
    try:
        if not os.path.isdir(root + _GENERATED):
            return None
        content, host = configs.read_guest(root, name), configs.read_host(root)
        text = files.read(f"{root}{_GENERATED}/kvm-setup@{name}.service.d/{agreed.NAME}")
    except FileNotFoundError:
        return False
    except (OSError, KvmsupError):
        return None
    lines = [line for line in text.splitlines() if line.startswith(f"Environment={agreed.LOADED}=")]
    return bool(lines) and content is not None and lines[-1].endswith(f"={agreed.fingerprint(content, host)}")
