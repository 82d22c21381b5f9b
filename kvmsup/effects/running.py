# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each running guest was started with: /run/kvmsup/running/NAME.json, keys as in its file (plan/changes)."""

from __future__ import annotations

import os

from kvmsup.effects import files
from kvmsup.effects.claims import RUN
from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# A guest with 4096 pinned vCPUs has about 200 KB.
_MOST = 4 << 20


def path(root: str, guest: str) -> str:
    """Where it is, or would be."""
    return f"{root}{RUN}/running/{guest}.json"


def write(root: str, guest: str, keys: dict[str, Any]) -> None:
    """Write or replace it as one. Raises HostError."""
    import json  # release only removes

    file = path(root, guest)
    try:
        os.makedirs(os.path.dirname(file), 0o755, exist_ok=True)
    except OSError as error:
        raise HostError(f"{file}: cannot write: {error.strerror}") from None
    files.replace(file, json.dumps(keys, indent=1) + "\n")


def read(root: str, guest: str) -> dict[str, Any] | None:
    """The keys with their values; None where they are not known, as of a guest that an older kvmsup started."""
    import json

    try:
        found = json.loads(files.read_bytes(path(root, guest), _MOST))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def remove(root: str, guest: str) -> None:
    """Remove it; that there is none is as good. Raises HostError."""
    files.remove(path(root, guest))
