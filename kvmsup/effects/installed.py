# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the installed QEMU says for `kvmsup new` and `import`: its machine types, and what an image is."""

from __future__ import annotations

import json
import os
import re
import subprocess

from kvmsup.effects import headers
from kvmsup.errors import HostError
from kvmsup.plan.newguest import Image
from kvmsup.plan.paths import BINARY

_IMG = "/usr/bin/qemu-img"
_PATIENCE_SECONDS = 60
_NEWEST = re.compile(r"^q35 .*\(alias of (pc-q35-[0-9.]+)\)$", re.MULTILINE)


def newest_machine() -> str:
    """The versioned type that "q35" stands for now. Raises HostError."""
    found = _NEWEST.search(_said([BINARY, "-machine", "help"], "qemu-system-x86"))
    if not found:
        raise HostError(f"{BINARY} does not say which machine type q35 is", "name one: --machine pc-q35-7.2")
    return found[1]


def machines() -> frozenset[str]:
    """Every machine type that it knows. Raises HostError."""
    lines = _said([BINARY, "-machine", "help"], "qemu-system-x86").splitlines()
    return frozenset(line.split()[0] for line in lines[1:] if line.strip())


def image(path: str) -> Image:
    """What qemu-img finds at `path`. It may guess the format of what is the administrator's own. Raises HostError."""
    _check(path)
    text = _said([_IMG, "info", "--output=json", "--", path], "qemu-utils")
    try:
        found = json.loads(text)
        return Image(path, str(found["format"]), int(found["virtual-size"]))
    except (ValueError, KeyError, TypeError):
        raise HostError(f"qemu-img's description of {path} is not as its schema says") from None


def _check(path: str) -> None:
    """Before root's qemu-img sees it: somebody else may have made it, with a header that leads elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            headers.check(descriptor, path, "raw")
            if headers.is_qcow2(descriptor):
                headers.check(descriptor, path, "qcow2")
            elif headers.is_vmdk(descriptor):
                raise _vmdk(path)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"--image {path}: {error.strerror}") from None
    except HostError as error:
        raise HostError(f"--image {error.what}", error.hint) from None


def _vmdk(path: str) -> HostError:
    """QEMU would open whatever it names, be it for a look alone."""
    hint = f"qemu-img convert -O qcow2 {path} NEW.qcow2, only if you trust who made it: files that it names are opened"
    return HostError(f"{path} is of the format vmdk; guests have raw and qcow2", hint)


def _said(command: list[str], package: str) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise HostError(f"there is no {command[0]}", f"apt install {package}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise HostError(said[-1].removeprefix("qemu-img: "))
    return done.stdout
