# SPDX-License-Identifier: LGPL-2.1-or-later
"""The seed of cloud-init: a small read-only disk with its NoCloud data source, made anew at each start of a guest.

xorriso makes it: a program that runs in the guest's sandbox as the guest's user, so that no start of a guest without
a seed imports or runs anything for it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from kvmsup.errors import HostError
from kvmsup.model.guest import OWN
from kvmsup.plan import firstboot


def make(guest: str, credentials: str, path: str) -> None:
    """Write the seed of `guest` to `path`, from what is in the directory `credentials`; what is not is derived.

    Raises HostError with what xorriso said; nothing is left behind then.
    """
    derived = {firstboot.META_DATA: firstboot.meta_data(guest), firstboot.USER_DATA: ""}
    made = []
    grafts = []
    try:
        for name in (firstboot.USER_DATA, firstboot.META_DATA, firstboot.NETWORK_CONFIG):
            source = f"{credentials}/{OWN}{name}"
            if not (credentials and os.path.exists(source)):
                if name not in derived:
                    continue
                source = f"{path}.{name}"
                made.append(source)
                with open(source, "w", encoding="utf-8") as file:
                    file.write(derived[name])
            grafts.append(f"{name}={source}")
        _burn(grafts, path)
    except OSError as error:
        raise HostError(f"cloud-init's seed cannot be made: {error.filename}: {error.strerror}") from None
    finally:
        for file_made in made:
            with contextlib.suppress(OSError):
                os.unlink(file_made)


def _burn(grafts: list[str], path: str) -> None:
    """cloud-init looks for the label in either case, with Joliet or Rock Ridge for names in lower case."""
    part = f"{path}.part"
    command = [
        *(
            firstboot.PROGRAM,
            "-no_rc",
            "-as",
            "mkisofs",
            "-quiet",
            "-V",
            "CIDATA",
            "-J",
            "-R",
            "-uid",
            "0",
            "-gid",
            "0",
        ),
        *("-file-mode", "0400", "-graft-points", "-o", part, *grafts),
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise HostError(
            f"cloud-init's seed cannot be made: there is no {firstboot.PROGRAM}", firstboot.INSTALL
        ) from None
    if done.returncode != 0:
        with contextlib.suppress(OSError):
            os.unlink(part)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise HostError(f"cloud-init's seed cannot be made: {said[-1] if said else f'status {done.returncode}'}")
    os.rename(part, path)
