# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML's [guest] → what runs inside the guest and talks to the host."""

from __future__ import annotations

import re

from kvmsup.model.guest import Inside
from kvmsup.model.table import Table

# In a claim, so lower-case (kvmsup.model.claim). systemd tells its host of targets alone.
_TARGET = r"unit:([a-z0-9][a-z0-9-]{0,60}\.target)"


def read(table: Table) -> Inside:
    """The [guest] table."""
    return Inside(_ready(table), table.boolean("agent", False))


def _ready(table: Table) -> str:
    value = table.values.get("ready", False)
    if not isinstance(value, str):
        return "yes" if table.boolean("ready", False) else ""
    if found := re.fullmatch(_TARGET, value):
        return found[1]
    hint = 'true, or "unit:NAME.target"'
    if re.fullmatch(_TARGET, f"unit:{value}"):
        hint = f'"unit:{value}"'
    elif value.startswith("unit:"):
        hint = 'a guest tells of its targets only, such as "unit:multi-user.target"'
    table.note("ready", f'"{value}" is nothing to wait for' if value.isprintable() else "is nothing to wait for", hint)
    return ""
