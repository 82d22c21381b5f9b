# SPDX-License-Identifier: LGPL-2.1-or-later
"""The schemas of what verbs print with --json, as they are installed, for tests of all kinds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DIRECTORY = Path(__file__).parents[1] / "packaging/schema"


@cache
def of(verb: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DIRECTORY / f"{verb}.json").read_text("utf-8"))
    return found


@cache
def _validator(verb: str) -> Draft202012Validator:
    return Draft202012Validator(of(verb))


def hold(verb: str, value: object) -> None:
    """Fail where `value` is not what `verb` may print."""
    # As a program reads it: tuples are arrays, and keys are strings.
    read = json.loads(json.dumps(value))
    wrong = [f"{error.json_path}: {error.message[:300]}" for error in _validator(verb).iter_errors(read)]
    assert not wrong, f"kvmsup {verb} --json is not as its schema says: {wrong}"
