# SPDX-License-Identifier: LGPL-2.1-or-later
"""How deep a TOML file goes, told before and after tomllib reads it.

tomllib takes time by the square of a dotted key's length, minutes for a file of the size that is read at all, and
everything that walks tables by calling itself has a depth at which Python gives up. No file that is meant comes near.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# A credential's name has 28 characters, so 14 parts at the most; no other key has more than four.
MOST = 32
# Strings and comments, also those that never end: what fails to match must not be tried again from the next character.
_OPAQUE = (
    r'"""(?:\\.|[^\\])*?(?:"""|\\?\Z)'
    r"|'''.*?(?:'''|\Z)"
    r'|"(?:\\[^\n]|[^"\\\n])*+\\?"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+"
)


def crowded(text: str) -> int:
    """The first line of `text`, from 1, with more dots outside of strings than any key has; 0 where there is none."""
    if _crowded(text):  # nearly never, and then strings have most of the dots
        return _crowded(re.sub(_OPAQUE, lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL))
    return 0


def _crowded(text: str) -> int:
    return next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") >= MOST), 0)


def is_deep(values: dict[str, Any]) -> bool:
    """Whether a table or list of `values` is below more than MOST others."""
    level: list[Any] = [values]
    for _ in range(MOST):
        level = [inner for one in level for inner in _inside(one)]
    return bool(level)


def _inside(container: Any) -> Iterator[Any]:
    found = container.values() if isinstance(container, dict) else container
    return (one for one in found if isinstance(one, dict | list))
