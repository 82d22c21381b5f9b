# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the programs of the start path import: an allow-list, because the time of an import cannot be tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsup.plan import agreed
from tests.unit import trees

ROOT = Path(__file__).parents[2]

# What Python 3.11 to 3.13 load for the modules that the programs name themselves.
LEAST = {"__future__", "_collections", "_collections_abc", "_stat", "genericpath", "os", "posixpath", "stat"}
BASE = LEAST | {
    "_functools", "_operator", "_weakrefset", "abc", "collections", "contextlib", "errno", "fcntl", "functools",
    "itertools", "keyword", "operator", "reprlib", "select", "types",
}  # fmt: skip
JSON = {"_json", "_sre", "copyreg", "enum", "json", "re"}
SOCKETS = {"_socket", "_struct", "array", "enum", "math", "selectors", "signal", "socket", "struct"}
TOML = {"_datetime", "_string", "_typing", "datetime", "math", "string", "tomllib", "typing", "warnings", "zlib"}

PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
before, start = set(sys.modules), time.perf_counter()
import importlib
loaded = set(sys.modules)
importlib.import_module("kvmsup.entry." + sys.argv[2])
took = time.perf_counter() - start
print(took, *sorted(set(sys.modules) - loaded - before))
"""


def imported(entry: str) -> tuple[set[str], set[str]]:
    """What `entry` brings with it: the standard library's top-level modules, and our own modules."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(ROOT), entry]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    took, *names = done.stdout.split()
    print(json.dumps({"entry": entry, "milliseconds": round(float(took) * 1000, 1), "modules": len(names)}))
    ours = {name for name in names if name.startswith("kvmsup.")}
    return {name.partition(".")[0] for name in names} - {"kvmsup"}, ours


@pytest.mark.parametrize(
    ("entry", "allowed", "most"),
    [
        ("ended", LEAST, 8),
        ("release", BASE, 29),
        ("restore", BASE, 18),
        ("stop", BASE | JSON | SOCKETS, 13),
        ("attach", BASE | JSON | SOCKETS, 24),
        ("create", BASE | JSON | {"_struct", "struct"}, 20),
        ("generator", BASE | {"zlib"}, 13),
        ("explain", BASE | JSON | SOCKETS | TOML, 23),
        ("setup", BASE | JSON | TOML, 52),
    ],
)
def test_imports_nothing_beyond_its_budget(entry: str, allowed: set[str], most: int) -> None:
    """`most`: modules of our own. Each costs a start as much as a dozen system calls; one more is to be meant."""
    standard, ours = imported(entry)
    assert standard - allowed == set()
    assert len(ours) <= most, sorted(ours)


VERB = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from kvmsup import cli
assert cli.plain(sys.argv[2:])
cli._module(sys.argv[2])
if sys.argv[2] == "list":
    from kvmsup.cli import listing
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize(
    ("words", "allowed", "most"),
    [
        (["list"], BASE | {"zlib"}, 33),
        (["status", "web"], BASE, 16),
        (["check"], BASE | TOML | {"_sre", "copyreg", "enum", "re", "zlib"}, 36),
    ],
)
def test_a_verb_that_a_person_waits_for_imports_little(words: list[str], allowed: set[str], most: int) -> None:
    """No argparse, JSON, subprocess, and no TOML before there is one to be read: each is as long as Python's start."""
    command = [sys.executable, "-I", "-S", "-c", VERB, str(ROOT), *words]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in names if name.startswith("kvmsup.")}
    assert {name.partition(".")[0] for name in names} - {"kvmsup"} - allowed == set()
    assert len(ours) <= most, sorted(ours)


RUN = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
main = importlib.import_module("kvmsup.entry." + sys.argv[2]).main
before = set(sys.modules)
assert main("web", sys.argv[3]) == 0
print(*sorted(set(sys.modules) - before))
"""


def test_a_small_guest_is_started_and_stopped_without_importing_more(tmp_path: Path) -> None:
    """What is imported where it is needed is not needed then. What runs is written down in JSON."""
    root, content = str(tmp_path), (ROOT / "tests/golden/01-minimal/etc/kvmsup/web.toml").read_bytes()
    trees.cpus(root, {number: str(number) for number in range(2)}, {0: "0-1"})
    for path, text in (("/dev/kvm", ""), ("/etc/kvmsup/web.toml", content.decode().rstrip("\n"))):
        trees.write(root, path, text)
    json_alone = {"json", "json.decoder", "json.encoder", "json.scanner", "_json"}
    for entry, more in (("setup", json_alone), ("release", set())):
        command = [sys.executable, "-I", "-S", "-c", RUN, str(ROOT), entry, root]
        environment = os.environ | {agreed.LOADED: agreed.fingerprint(content, b"")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert set(done.stdout.split()) == more


def test_the_position_of_an_error_is_loaded_only_for_an_error() -> None:
    command = "from kvmsup.entry import generator; import sys; print('kvmsup.model.positions' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
