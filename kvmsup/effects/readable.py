# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the guest's own user will be able to read a file of the host: QEMU and create run as that user."""

from __future__ import annotations

import os
import stat

from kvmsup.errors import HostError
from kvmsup.model.hostpaths import HIDDEN

# kvm@.service: ProtectHome= and PrivateTmp=. What it hides by TemporaryFileSystem= the drop-in shows (plan/visible).
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")


def check(key: str, path: str, root: str) -> None:
    """What the TOML names at `key` must be a file that others can read, and they must be able to enter every directory
    above it.

    Raises HostError.
    """
    try:
        mode = os.stat(root + path).st_mode
    except OSError as error:
        raise HostError(f"{key}: {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise HostError(f"{key}: {path} is no file", "name a file")
    if not mode & 0o004:
        raise HostError(f"{key}: {path} cannot be read by the guest's own user", f"chmod o+r {path}")
    if path.startswith(_HIDDEN):
        what = f"{key}: {path} is hidden from the guest's sandbox"
        raise HostError(what, "move it to /var/lib or /boot")
    _check_place(key, path, root)
    directory = os.path.dirname(path)
    while directory != "/":
        if not os.stat(root + directory).st_mode & 0o001:
            what = f"{key}: {path} cannot be reached by the guest's own user"
            raise HostError(what, f"chmod o+x {directory}, or move the file")
        directory = os.path.dirname(directory)


def check_shown(key: str, path: str, root: str) -> None:
    """Raises HostError when the sandbox hides the file at `path`, which no TOML names and so nobody shows to it."""
    place = _place(path, root)
    if any(one.startswith((*_HIDDEN, *HIDDEN)) for one in (path, place)):
        what = f"{key}: {path} is hidden from the guest's sandbox"
        raise HostError(what, "move it to /usr/local/share, and have its descriptor in /etc/qemu/firmware say so")


def _place(path: str, root: str) -> str:
    """Where `path` leads to, as the host below `root` sees it."""
    return os.path.realpath(root + path).removeprefix(os.path.realpath(root) if root else "")


def _check_place(key: str, path: str, root: str) -> None:
    """The sandbox shows what the TOML names, and not what a link leads to."""
    place = _place(path, root)
    if path.startswith(HIDDEN) or not place.startswith((*_HIDDEN, *HIDDEN)):
        return
    what = f"{key}: {path} leads to {place}, which is hidden from the guest's sandbox"
    raise HostError(what, "move it to /var/lib or /boot" if place.startswith(_HIDDEN) else f"name {place} itself")
