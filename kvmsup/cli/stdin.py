# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a verb is given on standard input, where - stands for a file."""

from __future__ import annotations

import sys

from kvmsup.errors import HostError

_HINT = "name a file, or give one with <"


def read(most: int) -> bytes:
    """Up to `most` bytes of it, and all there are when they are fewer.

    Raises HostError when it cannot be read; that it is standard input is for the caller to say, as of a file.
    """
    if sys.stdin is None:
        raise HostError("cannot read: it is closed", _HINT)
    try:
        found = sys.stdin.buffer.read(most)
    except OSError as error:
        raise HostError(f"cannot read: {error.strerror}", _HINT) from None
    if found is None:  # whoever had it before has made it not wait (io.BufferedReader.read)
        raise HostError("cannot read: it does not wait for what is to come", _HINT)
    return found
