# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QMP client against a QEMU that misbehaves: a sentence within bounded time, whatever it does."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmsup.effects import qmp
from kvmsup.errors import QmpError
from tests.unit import fake_qemu, real_qemu

PATIENCE = 0.4
# What a busy machine may add to it.
SLACK = 10.0


def deadline(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


def speak(monitor: qmp.Monitor) -> None:
    monitor.negotiate()
    monitor.execute("query-cpus-fast")


def spoken(behaviour: str, seconds: float) -> str:
    """The sentence that negotiating with and asking the fake ends in."""
    with fake_qemu.running(behaviour) as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        # It takes a while to start; what counts is the time from then on.
        monitor.deadline = deadline(seconds)
        with pytest.raises(QmpError) as caught:
            speak(monitor)
    return str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("hang-up", "QEMU closed its monitor"),
        ("hang-up-after-greeting", "QEMU closed its monitor"),
        ("hang-up-in-a-line", "QEMU closed its monitor"),
        ("die", "QEMU closed its monitor"),
        ("die-at-threads", "QEMU closed its monitor"),
        ("bad-greeting", "the monitor did not greet as QMP does"),
        ("not-json", "QEMU sent something that is not JSON"),
        ("not-utf-8", "QEMU sent something that is not JSON"),
        ("empty-line", "QEMU sent something that is not JSON"),
        ("deep", "QEMU sent something that is not JSON"),
        ("digits", "QEMU sent something that is not JSON"),
        ("not-an-object", "QEMU sent something that is not a QMP message"),
        ("no-return", "QEMU answered qmp_capabilities with neither a result nor an error"),
        ("error-without-words", "QEMU refused qmp_capabilities: 3"),
        ("refuse-cpus", "QEMU refused query-cpus-fast: query-cpus-fast is not for you"),
        ("endless-line", "QEMU sent a message of over 8 MiB"),
        ("events-flood", "QEMU sent over 10000 events instead of an answer"),
    ],
)
def test_misbehaviour(behaviour: str, said: str) -> None:
    assert spoken(behaviour, SLACK) == said


@pytest.mark.parametrize("behaviour", ["silence", "silence-after-greeting"])
def test_patience_is_bounded(behaviour: str) -> None:
    assert spoken(behaviour, PATIENCE) == "QEMU has not answered in time"


def test_a_flood_does_not_stop_the_clock() -> None:
    with fake_qemu.running("never-reads") as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        monitor.deadline = deadline(0)
        with pytest.raises(QmpError, match=r"^QEMU has not answered in time$"):
            monitor.execute("x")


def test_nothing_can_be_sent_to_it() -> None:
    """A peer that only sends: its output must not count as being ready for ours."""
    with fake_qemu.running("never-reads") as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        monitor.deadline = deadline()
        start = time.process_time()
        with pytest.raises(QmpError, match=r"^QEMU has not answered in time$"):
            monitor.execute("x" * (8 << 20))
        assert time.process_time() - start < PATIENCE / 2, "it was waited for by spinning"


def test_good() -> None:
    with fake_qemu.running("slow") as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        monitor.negotiate()
        threads = qmp.vcpu_threads(monitor)
        assert sorted(threads) == [0, 1]
        assert set(threads.values()) == {int(tid) for tid in os.listdir(f"/proc/{fake.pid}/task")} - {fake.pid}
        assert monitor.events == ["RTC_CHANGE_0", "RTC_CHANGE_1", "RTC_CHANGE_2"] * 2
        assert monitor.execute("system_powerdown") == {}
        assert monitor.wait_for_end(SLACK)


def test_huge_message_that_is_right() -> None:
    with fake_qemu.running("huge-message") as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        monitor.negotiate()
        assert monitor.execute("x") == {}


def test_waiting_keeps_events_and_ends_in_time() -> None:
    with fake_qemu.running("ignore-everything") as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        monitor.negotiate()
        start = time.monotonic()
        assert not monitor.wait_for_end(0.1)
        assert 0.1 <= time.monotonic() - start < SLACK
        fake.process.kill()
        assert monitor.wait_for_end(SLACK)


@pytest.mark.parametrize(
    ("behaviour", "ended"), [("hang-up-after-greeting", False), ("events-flood", False), ("die", True)]
)
def test_waiting_for_one_that_misbehaves(behaviour: str, ended: bool) -> None:
    with fake_qemu.running(behaviour) as fake, qmp.Monitor(fake.path, fake.pid, deadline(SLACK)) as monitor:
        monitor._message()
        monitor._send(b'{"execute": "qmp_capabilities"}\n')
        assert monitor.wait_for_end(SLACK if ended else 0.2) is ended


def test_qemu_ends_before_it_listens() -> None:
    said = r"^QEMU ended before it could be spoken to$"
    with subprocess.Popen([sys.executable, "-c", ""]) as process, pytest.raises(QmpError, match=said):
        qmp.Monitor("/nonexistent/socket", process.pid)


def test_qemu_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(QmpError, match=r"^QEMU is gone: No such process$"):
        qmp.Monitor("/nonexistent/socket", process.pid)


def test_qemu_never_listens() -> None:
    with pytest.raises(QmpError, match=r"^QEMU has not opened /nonexistent/socket in time$"):
        qmp.Monitor("/nonexistent/socket", os.getpid(), deadline(0.01))


def test_path_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QmpError, match=r"^QEMU has not opened .*/file in time$"):
        qmp.Monitor(str(tmp_path / "file"), os.getpid(), deadline(0.01))


def test_path_is_too_long() -> None:
    with pytest.raises(QmpError, match=r"^/x+: AF_UNIX path too long$"):
        qmp.Monitor("/" + "x" * 200, os.getpid(), deadline())


def test_somebody_else_listens() -> None:
    with fake_qemu.running("good") as fake:
        with qmp.Monitor(fake.path, fake.pid, deadline(SLACK)):
            pass
        with pytest.raises(QmpError) as caught:
            qmp.Monitor(fake.path, os.getpid(), deadline())
    assert str(caught.value) == f"{fake.path} leads to process {fake.pid} instead of QEMU, {os.getpid()}"


def test_others_are_waiting_already(tmp_path: Path) -> None:
    """A monitor serves one client at a time; connecting beyond its backlog would block for ever."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
            with pytest.raises(QmpError) as caught:
                qmp.Monitor(path, os.getpid(), deadline(0.05))
    assert str(caught.value) == f"others wait at {path} already"


def test_who_has_a_monitor_is_told() -> None:
    """QEMU lets one client in: the next ones get no answer, and the one after those not even a place to wait."""
    with real_qemu.running() as machine, machine.connected() as monitor, contextlib.ExitStack() as waiting:
        monitor.execute("query-status")
        said = []
        for _ in range(5):
            with pytest.raises(QmpError) as caught:
                one = qmp.Monitor(machine.monitor, machine.process.pid, deadline(0.2))
                waiting.enter_context(one)
                one.negotiate()
            said.append(str(caught.value))
        assert all(one.startswith(f"{machine.monitor} is in use by process {os.getpid()}") for one in said)
