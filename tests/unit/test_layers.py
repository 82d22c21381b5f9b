# SPDX-License-Identifier: LGPL-2.1-or-later
"""The house rules that a program can check: layers, third-party imports, lengths, names."""

from __future__ import annotations

import ast
import statistics
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kvmsup"
LAYERS = ("leaf", "model", "plan", "effects", "entry", "cli")
LEAVES = ("errors", "catalog", "cpulist", "records", "sizes", "steps")
THIRD_PARTY = {
    "pystemd": "kvmsup.effects.systemd",
    "pyudev": "kvmsup.effects.udev",
    "toml": "kvmsup.plan.guestfile",
    "tqdm": "kvmsup.cli.progress",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in FILES}


def test_every_folder_is_packaged() -> None:
    """For pip; the Debian package copies the tree."""
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in FILES})


def layer(module: str) -> int:
    inside = module.removeprefix("kvmsup").lstrip(".").partition(".")[0]
    if not inside:
        return -1  # the package itself: its version
    return 0 if inside in LEAVES else LAYERS.index(inside)


def imports(module: str) -> set[str]:
    """Every module that `module` imports, those inside its functions too."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in TREES else base for name in inner}
    return found


def own(module: str) -> set[str]:
    return {name for name in imports(module) if name.partition(".")[0] == "kvmsup"}


@pytest.mark.parametrize("module", TREES)
def test_imports_go_down_only(module: str) -> None:
    above = {name for name in own(module) if layer(name) > layer(module)}
    assert not above, f"{module} imports from a layer above it"


def test_imports_are_of_modules_that_exist() -> None:
    assert {name for module in TREES for name in own(module)} <= TREES.keys()


def test_imports_have_no_cycle() -> None:
    # A package's __init__ is imported with each of its modules.
    graph = {module: {*own(module), module.rpartition(".")[0]} - {module, ""} for module in TREES}
    assert list(TopologicalSorter(graph).static_order())


def test_third_party_imports() -> None:
    known = sys.stdlib_module_names | {"kvmsup"}
    found = {(name.partition(".")[0], module) for module in TREES for name in imports(module)}
    assert {(name, module) for name, module in found if name not in known} == set(THIRD_PARTY.items())


def functions() -> dict[str, int]:
    """The length in lines of every function, without its decorators."""
    return {
        f"{module}.{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_lengths() -> None:
    lines = {module_name(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert not {module: count for module, count in lines.items() if count > 400}
    assert not {name: count for name, count in functions().items() if count > 60}
    assert statistics.median(functions().values()) < 10


def test_names() -> None:
    vague = ("util", "utils", "manager", "helper", "helpers", "misc", "common")
    assert not [module for module in TREES if module.rpartition(".")[2] in vague]
    classes = [node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if name.lower().endswith(("util", "utils", "manager", "helper"))]


@pytest.mark.parametrize("module", TREES)
def test_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(TREES[module])
