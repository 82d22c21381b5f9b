# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the programs of the start path import: an allow-list, because the time of an import cannot be tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What Python 3.11 to 3.13 load for the modules that the programs name themselves.
BASE = {
    "__future__", "_collections", "_collections_abc", "_functools", "_operator", "_sre", "_stat", "_typing", "abc",
    "collections", "contextlib", "copyreg", "enum", "errno", "functools", "genericpath", "itertools", "keyword",
    "math", "operator", "os", "posixpath", "re", "reprlib", "stat", "types", "typing", "warnings", "_weakrefset",
}  # fmt: skip
SOCKETS = {"_json", "_socket", "array", "json", "select", "selectors", "socket", "struct", "_struct"}
TOML = {"_datetime", "_string", "datetime", "string", "tomllib", "zlib"}
PROCESSES = {"_locale", "_posixsubprocess", "fcntl", "locale", "signal", "subprocess", "threading", "_thread"}

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


def imported(entry: str) -> set[str]:
    """The top-level modules that `entry` brings with it."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(ROOT), entry]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    took, *names = done.stdout.split()
    print(json.dumps({"entry": entry, "milliseconds": round(float(took) * 1000, 1), "modules": len(names)}))
    assert "kvmsup" in names
    return {name.partition(".")[0] for name in names} - {"kvmsup"}


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        ("generator", BASE | TOML | {"_json", "json"}),
        ("attach", BASE | SOCKETS | {"signal"}),
        ("stop", BASE | SOCKETS | PROCESSES),
        ("explain", BASE | SOCKETS | TOML),
        ("release", BASE | SOCKETS | PROCESSES),
        ("setup", BASE | SOCKETS | PROCESSES | TOML),
    ],
)
def test_imports_nothing_beyond_its_budget(entry: str, allowed: set[str]) -> None:
    assert imported(entry) - allowed == set()


def test_the_position_of_an_error_is_loaded_only_for_an_error() -> None:
    command = "from kvmsup.entry import generator; import sys; print('kvmsup.model.positions' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
