# SPDX-License-Identifier: LGPL-2.1-or-later
"""ExecStopPost= of kvmsup.service: whatever ended the supervisor, the host's settings are as they were found.

Apart from the supervisor, because none of what that needs to follow the host is needed for this.
"""

from __future__ import annotations

from kvmsup.effects import journal, ksm
from kvmsup.errors import KvmsupError


def main(root: str = "") -> int:
    """Put KSM back; 0, or 1 with the reason in the journal."""
    try:
        ksm.restore(root)
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error), "supervisor-failed")
        return 1
    return 0
