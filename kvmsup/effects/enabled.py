# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which guests start at boot, as systemctl enable has left it."""

from __future__ import annotations

import os

_UNITS = "/etc/systemd/system"
# What links of [Install] are in (systemd.unit(5), "[Install] Section Options").
_OF_OTHERS = (".wants", ".requires", ".upholds")
_PREFIX, _SUFFIX = "kvm@", ".service"


def guests(root: str) -> frozenset[str]:
    """Their names, by the links that another unit has to theirs; none where the directory cannot be read."""
    places = [place for place in _names(root + _UNITS) if place.endswith(_OF_OTHERS)]
    units = {name for place in places for name in _names(f"{root}{_UNITS}/{place}")}
    return frozenset(
        name[len(_PREFIX) : -len(_SUFFIX)] for name in units if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    )


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
