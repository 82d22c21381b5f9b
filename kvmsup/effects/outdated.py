# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a running guest is not what it would be if it were started now: its file, and its QEMU."""

from __future__ import annotations

import functools
import os

from kvmsup.effects import configs, files, running
from kvmsup.errors import KvmsupError
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest, is_name
from kvmsup.plan import agreed
from kvmsup.plan.agreed import Outline
from kvmsup.plan.paths import BINARY
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kvmsup.plan.changes import Change

_GENERATED = "/run/systemd/generator"
OLDER, ANOTHER = "older", "another"


def configured(root: str, name: str) -> Guest | None:
    """The guest as its file says it, None while that is wrong or gone, or can be none for its name."""
    try:
        content = configs.read_guest(root, name) if is_name(name) else None
        if content is None:
            return None
        from kvmsup.model import config  # with tomllib, which takes as long as Python to start

        return config.read_guest(name, configs.guest_file(name), content).guest
    except KvmsupError:
        return None


def changed(root: str, guest: Guest) -> list[Change] | None:
    """What the file of running `guest` says otherwise than what it runs with; None where that is not known."""
    from kvmsup.plan import changes

    keys = running.read(root, guest.name)
    return None if keys is None else changes.decide(changes.differences(keys, changes.flatten(guest)))


def outline(root: str, name: str, host: bytes, claim: Claim | None) -> tuple[Outline | None, list[Change] | None]:
    """The outline of a guest's file, None while that is wrong or gone; and as `changed`, [] for one without a claim.

    `host` is the host's file. What the generator has made of both tells the one, and a claim that was made from both
    the other: so the guest's file is read as TOML only after an edit.
    """
    try:
        content = configs.read_guest(root, name) if is_name(name) else None
    except KvmsupError:
        content = None
    if content is None:
        return None, None
    made_from = agreed.fingerprint(content, host)
    found = agreed.outline_in(_generated(root, name), made_from)
    if found and (claim is None or claim.loaded == made_from):
        return found, []
    guest = configured(root, name)
    return (agreed.outline(guest), changed(root, guest) if claim else []) if guest else (None, None)


def _generated(root: str, name: str) -> str:
    try:
        return files.read(f"{root}{_GENERATED}/kvm-setup@{name}.service.d/{agreed.NAME}")
    except OSError:
        return ""


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
    import re
    import subprocess

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
