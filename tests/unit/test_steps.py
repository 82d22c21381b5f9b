# SPDX-License-Identifier: LGPL-2.1-or-later
"""The named steps: those announced are those listed, and each can be made to fail."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsup.errors import HostError
from kvmsup.steps import STEPS, SUPERVISOR, step

ROOT = Path(__file__).parents[2]


def announced() -> list[str]:
    """The argument of every call of step(), which must be written out."""
    found = []
    for path in sorted((ROOT / "kvmsup").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("step", "steps.step"):
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno} does not name its step"
                found.append(str(argument.value))
    return found


def test_steps_are_those_announced() -> None:
    assert sorted(STEPS + SUPERVISOR) == sorted(set(announced()))
    assert len(STEPS) == len(set(STEPS))


def test_each_step_is_announced_once() -> None:
    assert sorted(announced()) == sorted(STEPS + SUPERVISOR)


def test_names() -> None:
    assert all(name.partition(".")[0] in ("setup", "create", "attach", "apply", "stop", "release") for name in STEPS)


def test_without_a_fault_nothing_happens() -> None:
    for name in STEPS:
        step(name)


@pytest.mark.parametrize("name", STEPS)
def test_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMSUP_FAULT", f"{name}:error")
    for other in STEPS:
        if other != name:
            step(other)
    with pytest.raises(HostError) as caught:
        step(name)
    assert str(caught.value) == f"a fault was injected at the step {name} (KVMSUP_FAULT)"


def at_step(how: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from kvmsup.steps import step; step('attach.pin'); print('went on')"]
    environment = {**os.environ, "KVMSUP_FAULT": f"attach.pin:{how}"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)


def test_kill() -> None:
    process = at_step("kill")
    assert process.communicate(timeout=20)[0] == b""
    assert process.returncode == -signal.SIGKILL


def test_stop() -> None:
    process = at_step("stop")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20)[0] == b"went on\n"
