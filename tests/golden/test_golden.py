# SPDX-License-Identifier: LGPL-2.1-or-later
"""The generator's output against the expected files, and whether every key of the configuration is among them.

test_keys.py has what the man pages say of the keys.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvmsup.model import config
from tests.golden import CASES, generated, tree


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Path) -> None:
    assert generated(case) == tree(case / "expected")


def test_there_are_cases() -> None:
    assert len(CASES) >= 14


def test_expected_belongs_to_a_case() -> None:
    assert {path.parent for path in Path(__file__).parent.glob("*/expected")} <= set(CASES)


def dotted(keys: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Every key by its full name; a key that names a table is told by what is in it."""
    names = (f"{table}.{key}" if table else key for table, found in keys.items() for key in found)
    return [name for name in names if name not in keys]


# Tables of which there may be several, by what stands for their own name.
SEVERAL = {"iothread": "NAME", "numa": "N", "disk": "NAME", "net": "NAME"}


def written(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        key = SEVERAL.get(prefix.rstrip("."), name)
        yield prefix + key
        if isinstance(value, dict):
            yield from written(value, f"{prefix}{key}.")


def keys_of(pattern: str) -> set[str]:
    """The keys in the files of all cases that are sound."""
    sound = [case for case in CASES if not (case / "expected/stderr").exists()]
    files = [file for case in sound for file in case.glob(pattern)]
    return {key for file in files for key in written(tomllib.loads(file.read_text("utf-8")))}


@pytest.mark.parametrize("key", dotted(config.GUEST_KEYS))
def test_guest_key_is_in_a_golden(key: str) -> None:
    assert key in keys_of("etc/kvmsup/[a-z]*.toml")


@pytest.mark.parametrize("key", dotted(config.HOST_KEYS))
def test_host_key_is_in_a_golden(key: str) -> None:
    assert key in keys_of("etc/kvmsup.toml")
