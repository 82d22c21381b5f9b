# SPDX-License-Identifier: LGPL-2.1-or-later
"""The JSON schemas: whole, told in the man page, and true of what verbs print (see also tests/unit/conftest.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kvmsup import cli
from tests import schema
from tests.golden import CASES
from tests.unit import machines

ROOT = Path(__file__).parents[2]
VERBS = sorted(path.stem for path in schema.DIRECTORY.iterdir())
PAGE = (ROOT / "packaging/man/kvmsup.1.rst").read_text("utf-8")
JSON = PAGE.partition("\nJSON\n====\n")[2].partition("\nENVIRONMENT\n")[0]


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


def members(verb: str) -> dict[str, dict[str, Any]]:
    """The members of all objects, by name."""
    of_objects = (part["properties"] for part in parts(schema.of(verb)) if "required" in part)
    return {name: inner for properties in of_objects for name, inner in properties.items()}


def test_every_verb_has_one() -> None:
    verbs = next(action for action in cli.parser()._actions if action.dest == "verb").choices
    assert verbs and sorted(verbs) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_whole(verb: str) -> None:
    found = schema.of(verb)
    Draft202012Validator.check_schema(found)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for part in parts(found):
        if "object" in part.get("type", ()):
            assert part["additionalProperties"] is False
            assert list(part.get("properties", ())) == part.get("required", [])
    assert not [name for name, inner in members(verb).items() if not str(inner.get("description", "")).endswith(".")]


def test_what_several_share_is_the_same() -> None:
    for verb in VERBS:
        for name, inner in schema.of(verb).get("$defs", {}).items():
            others = [schema.of(other).get("$defs", {}).get(name, inner) for other in VERBS]
            assert all(other == inner for other in others), name


def section(verb: str) -> str:
    """What the man page says of the verb's JSON."""
    return JSON.partition(f"\n**kvmsup {verb} --json**\n")[2].partition("\n**kvmsup ")[0]


@pytest.mark.parametrize("verb", VERBS)
def test_the_man_page_has_every_member_and_no_other(verb: str) -> None:
    shared = {name for inner in schema.of(verb).get("$defs", {}).values() for name in inner["properties"]}
    own = {name for name in members(verb) if name not in shared}
    told = set(re.findall(r"(?<!\*)\*([a-z][a-z_]*)\*(?!\*)", section(verb)))
    assert own - told == set()
    assert {name for name in shared if f"*{name}*" not in JSON} == set()
    assert told - members(verb).keys() - set(VERBS) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_a_member_more_or_less_is_wrong(verb: str) -> None:
    found = schema.of(verb)
    validator = Draft202012Validator(found)
    assert not validator.is_valid({"surprise": 1})
    assert not validator.is_valid({})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_check_and_plan_of_every_golden_case(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["check", "--root", str(case), "--json"])
    schema.hold("check", json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("machine", [machines.hybrid_laptop, machines.epyc_nps4, machines.cxl_memory])
def test_topology_and_plan_of_machines(machine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine(str(tmp_path))
    case = next(case for case in CASES if case.name == "03-dedicated")
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    for file in (case / "etc/kvmsup").iterdir():
        (tmp_path / "etc/kvmsup" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "etc/kvmsup/broken.toml").write_text("[")
    for verb in ("topology", "plan"):
        cli.main([verb, "--root", str(tmp_path), "--json"])
        schema.hold(verb, json.loads(capsys.readouterr().out))


def test_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, *more in (["host"], ["console", "web"]):
        assert cli.main([verb, *more, "--json"]) in (0, 1)
        schema.hold(verb, json.loads(capsys.readouterr().out))
