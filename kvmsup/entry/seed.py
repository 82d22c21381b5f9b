# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStartPre=, of guests with [cloud-init]: make their seed, in the guest's sandbox and as its user."""

from __future__ import annotations

import os

from kvmsup.effects import journal, seed
from kvmsup.errors import KvmsupError
from kvmsup.plan import paths
from kvmsup.steps import step


def main(name: str) -> int:
    """Make the seed of the guest called `name`; 0, or 1 with the reason on standard error."""
    try:
        step("create.seed")
        seed.make(name, os.environ.get("CREDENTIALS_DIRECTORY", ""), paths.seed(name))
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error))
        return 1
    return 0
