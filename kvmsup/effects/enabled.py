# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which guests start at boot, as systemctl enable has left it."""

from __future__ import annotations

import os

_UNITS = "/etc/systemd/system"
_FOR_NOW = "/run/systemd/system"
# What links of [Install] are in (systemd.unit(5), "[Install] Section Options").
_OF_OTHERS = (".wants", ".requires", ".upholds")
_PREFIX, _SUFFIX = "kvm@", ".service"


def guests(root: str) -> frozenset[str]:
    """Their names, by the links that another unit has to theirs; none where the directory cannot be read.

    To mask a unit leaves these links alone, and it does not start.
    """
    places = _names(root + _UNITS, _OF_OTHERS)
    units = {name for place in places for name in _names(f"{root}{_UNITS}/{place}", (_SUFFIX,))}
    return frozenset(
        name[len(_PREFIX) : -len(_SUFFIX)]
        for name in units
        if name.startswith(_PREFIX) and not any(_is_masked(f"{root}{place}/{name}") for place in (_UNITS, _FOR_NOW))
    )


def _names(directory: str, endings: tuple[str, ...]) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if name.endswith(endings)]
    except OSError:
        return []


def _is_masked(path: str) -> bool:
    try:
        return os.readlink(path) == os.devnull
    except OSError:
        return False
