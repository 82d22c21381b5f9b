# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup plan over hosts made of files: several guests one beside the other, refusals, and nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvmsup import cli
from kvmsup.effects import claims
from tests.unit import trees
from tests.unit.hosts import claim

HEAD = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "64M"\n'
DEDICATED = HEAD + '[cpu]\nvcpus = 2\n[placement]\ncpus = "dedicated"\n'


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Two nodes of two cores with two siblings, and guest db on CPU 2 and 6."""
    found = str(tmp_path)
    trees.cpus(found, {number: f"{number % 4},{number % 4 + 4}" for number in range(8)}, {0: "0-1,4-5", 1: "2-3,6-7"})
    for node in (0, 1):
        trees.write(found, f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemFree: 999999 kB")
    Path(f"{found}/run/kvmsup/claims").mkdir(parents=True)
    claims.write(found, claim("db", ["2", "6"], emulator="0,4"))
    return found


def write(root: str, **guests: str) -> None:
    for name, text in guests.items():
        trees.write(root, f"/etc/kvmsup/{name}.toml", text)


def planned(root: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status = cli.main(["plan", "--json", "--root", root, *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_guests_are_planned_one_beside_the_other(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, a=DEDICATED, b=DEDICATED, c=DEDICATED, db=DEDICATED, wrong="x = 1")
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    status, found = planned(root, capsys)
    assert status == 1
    assert {one["name"]: one["verdict"] for one in found} == {
        "a": "fits", "b": "fits", "c": "refused", "db": "runs", "wrong": "broken file",
    }  # fmt: skip
    by_name = {one["name"]: one for one in found}
    assert by_name["a"]["placement"]["vcpu"] == {"0": "1", "1": "5"}
    assert by_name["b"]["placement"]["vcpu"] == {"0": "3", "1": "7"}
    assert by_name["a"]["why"][0].startswith("CPU 1,5 on node 0: the best fit")
    assert "CPU 1,5 are dedicated to guest a" in by_name["c"]["refused"]
    assert "CPU 2,6 are dedicated to guest db" in by_name["c"]["refused"]
    assert "x: unknown key" in by_name["wrong"]["refused"]
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before


def test_one_guest_is_planned_beside_those_that_run_alone(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, a=DEDICATED, b=DEDICATED, db=DEDICATED)
    status, (found,) = planned(root, capsys, "b")
    assert (status, found["verdict"], found["placement"]["vcpu"]) == (0, "fits", {"0": "1", "1": "5"})
    # One that runs: where it would go if it were started now.
    status, (found,) = planned(root, capsys, "db")
    assert (status, found["placement"]["vcpu"]) == (0, {"0": "1", "1": "5"})


def test_the_plan_is_a_table_with_reasons(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, a=DEDICATED, s=HEAD)
    assert cli.main(["plan", "--root", root]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "GUEST        VCPUS  CPUS     IDLE  EMULATOR  NODE  MEMORY  PAGES",
        "a      fits  2      1 5      -     0,4       0     64M     -",
        "db     runs  2      2 6      -     0,4       0     -       -",
        "s      fits  1      0,3-4,7  -     0,4       -     64M     -",
        "",
        "a",
        "  CPU 1,5 on node 0: the best fit (room for vCPUs: 2 on node 0, 2 on node 1)",
        "  SMT siblings together: 1,5",
        "  emulator on CPU 0,4: housekeeping of its node",
        "  memory on node 0 (976M free)",
        "",
        "s",
        "  CPU 0,3-4,7: shared, so every CPU that nobody owns",
        "  emulator on CPU 0,4: housekeeping of its node",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dbb"], "kvmsup: there is no guest dbb\n  hint: did you mean db?\n"),
        (["--root", "/nowhere"], "kvmsup: --root /nowhere: no such directory\n"),
    ],
)
def test_no_plan(root: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, db=DEDICATED)
    assert cli.main(["plan", "--root", root, *arguments]) == 1
    assert capsys.readouterr().err == said


def test_nothing_to_plan(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    claims.remove(root, "db")
    assert cli.main(["plan", "--root", root]) == 0
    assert capsys.readouterr().out == "no guests: describe one in /etc/kvmsup/NAME.toml, see kvmsup.guest(5)\n"
