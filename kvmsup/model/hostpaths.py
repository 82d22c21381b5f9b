# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths of the host's files in a guest's TOML: which of them are refused for what they say alone."""

from __future__ import annotations

import os

# Whoever takes a guest's QEMU over may put links there, also where a file was before, and root would follow them.
GUESTS_OWN = ("/var/lib/kvmsup/", "/var/lib/private/kvmsup/", "/run/kvmsup/guests/")

# What the sandbox of kvm@.service hides by TemporaryFileSystem=, but for what plan/visible shows.
HIDDEN = ("/run/", "/var/", "/etc/kvmsup/")


def wrong(path: str) -> tuple[str, str] | None:
    """What is wrong with `path`, which root opens, and the hint; None for a good one.

    systemd waits for no mount or device behind a path with needless parts (src/core/load-fragment.c,
    config_parse_unit_requires_mounts_for), and one file would have many names.
    """
    if not path.startswith("/"):
        return f'"{path}" is not an absolute path', "start it with /"
    if any(part in ("", ".", "..") for part in path[1:].split("/")):
        return f'"{path}" names no file, or has parts that lead nowhere', "leave out //, /./, /../ and a / at the end"
    if path.startswith(GUESTS_OWN):
        what = f'"{path}" is in a guest\'s own directory, where links may lead root anywhere'
        return what, "put it where only root can write"
    return None


def unshowable(path: str) -> tuple[str, str] | None:
    """Why the sandbox cannot show the file at `path`, and the hint; None where it can, or hides nothing there.

    systemd-executor, since 255, takes the quotes out of what BindReadOnlyPaths= names (src/core/execute-serialize.c,
    exec_context_deserialize), and what .. leads through is not there.
    """
    if not path.startswith(HIDDEN):
        return None
    if "'" in path or '"' in path:
        return f"{path} has a quote, which systemd loses when it shows the file to the guest's sandbox", "rename it"
    if ".." in path.split("/"):
        return f"{path} goes by .. through what the guest's sandbox hides", f"name {os.path.normpath(path)} itself"
    return None


def is_absolute(path: str) -> bool:
    """Whether a disk at `path` is the host's, rather than in the guest's own directory."""
    return path.startswith("/")


def is_device(path: str) -> bool:
    """Whether the disk is a block device, by its path alone: the generator asks no host. /dev/shm has files."""
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")
