# SPDX-License-Identifier: LGPL-2.1-or-later
"""What guests have said of themselves: one file a guest in /run/kvmsup/ready, written by listen and read by all."""

from __future__ import annotations

from kvmsup.effects import claims, files
from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmsup.model.ready import Said


def path(root: str, guest: str) -> str:
    """Where the words of `guest` are, or would be."""
    return f"{root}{claims.RUN}/ready/{guest}"


def read(root: str, guest: str) -> Said:
    """What `guest` has said since its start; nothing where it has not said a word. Raises HostError."""
    from kvmsup.model import ready  # each release forgets, and few read

    file = path(root, guest)
    try:
        return ready.parse(files.read(file), file)
    except FileNotFoundError:
        return ready.Said()
    except OSError as error:
        raise HostError(f"{file}: cannot read: {error.strerror}") from None


def write(root: str, guest: str, said: Said) -> None:
    """Keep `said` for `guest`, replacing what it said before. Raises HostError."""
    from kvmsup.model import ready

    files.replace(path(root, guest), ready.render(said))


def forget(root: str, guest: str) -> None:
    """Nothing has been said by `guest`, nor begun to be written down. Raises HostError."""
    files.sweep_parts(f"{root}{claims.RUN}/ready", guest)
    files.remove(path(root, guest))
