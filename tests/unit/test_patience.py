# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting for the claims' lock that another process really holds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsup.effects import claims
from kvmsup.entry import patience

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from kvmsup.effects import claims
with claims.lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "proc").symlink_to("/proc")
    (tmp_path / "run").mkdir()
    return str(tmp_path)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What the service manager hears."""
    monkeypatch.setattr(patience, "_FIRST_SECONDS", 0.1)
    monkeypatch.setattr(patience, "_AGAIN_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def holder(root: str, seconds: float) -> subprocess.Popen[str]:
    package = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", HOLD, package, root, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def heard(systemd: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(systemd.recv(4096))
        except BlockingIOError:
            return found


def test_a_wait_is_told_once_and_systemd_is_asked_for_time(root: str, systemd: socket.socket) -> None:
    told: list[str] = []
    with holder(root, 1.0) as process, patience.lock(root, 150, told.append):
        assert process.poll() is not None or process.wait(5) == 0
        assert told == [f"waiting for the claims' lock, which process {process.pid} has ({root} 1.0)"]
        said = heard(systemd)
        assert len(said) >= 4
        assert set(said[:-1]) == {b"EXTEND_TIMEOUT_USEC=45000000"}
        assert said[-1] == b"EXTEND_TIMEOUT_USEC=150000000"
        with pytest.raises(claims.Busy), claims.lock_now(root):
            pass
    # Nothing goes on after it.
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    time.sleep(0.25)
    assert heard(systemd) == []


def test_without_a_wait_nothing_is_said(root: str, systemd: socket.socket) -> None:
    told: list[str] = []
    with patience.lock(root, 150, told.append):
        pass
    assert (told, heard(systemd)) == ([], [])


def test_a_dead_holder_holds_nothing(root: str, systemd: socket.socket) -> None:
    told: list[str] = []
    with holder(root, 600) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with patience.lock(root, 150, told.append):
            pass
    assert (told, heard(systemd)) == ([], [])


def test_the_lock_is_let_go_when_what_it_was_for_fails(root: str) -> None:
    with pytest.raises(ZeroDivisionError), patience.lock(root, 150, print):
        raise ZeroDivisionError
    with claims.lock_now(root):
        pass
    assert claims.holder(root) == "the claims' lock"
