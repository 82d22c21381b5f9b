# SPDX-License-Identifier: LGPL-2.1-or-later
"""/sys/kernel/mm/ksm, host-global and so only borrowed (Documentation/admin-guide/mm/ksm.rst).

What was found is written down before anything is changed, and put back only while our own value is still there: an
administrator's change in between is kept.
"""

from __future__ import annotations

import os

from kvmsup.effects import files
from kvmsup.effects.claims import RUN

_ON = "1"


def _run(root: str) -> str:
    return f"{root}/sys/kernel/mm/ksm/run"


def _found(root: str) -> str:
    return f"{root}{RUN}/ksm.found"


def available(root: str) -> bool:
    """Whether this kernel has KSM."""
    return os.path.exists(_run(root))


def start(root: str) -> None:
    """Turn merging on, remembering what was found. Raises HostError."""
    now = files.read(_run(root))
    if not os.path.exists(_found(root)):
        files.replace(_found(root), now)
    if now != _ON:
        files.write_attribute(_run(root), _ON)


def restore(root: str) -> None:
    """Put back what was found, unless somebody else has changed it since. Raises HostError."""
    if not os.path.exists(_found(root)):
        return
    found = files.read(_found(root))
    if files.read(_run(root)) == _ON != found:
        files.write_attribute(_run(root), found)
    files.remove(_found(root))
