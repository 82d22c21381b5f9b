# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each thread should do, what of it can be had, and that real threads which were moved are put back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kvmsup import cpulist
from kvmsup.effects import claims, foreign, pin, settle, threads
from kvmsup.effects.settle import restore
from kvmsup.errors import HostError, QmpError
from kvmsup.plan.duties import ORDINARY, Duty, Named, duties, now
from tests.unit import fake_qemu, trees
from tests.unit.hosts import claim

HELD = claim("web", ["2", "3"], emulator="0-1", scheduler="fifo:5")._replace(iothread={"io": frozenset((1,))})
ONLINE = frozenset(range(8))


def test_every_thread_has_a_duty() -> None:
    found = duties(HELD, Named({0: 100, 1: 101}, {"io": 102}), [99, 100, 102, 103])
    assert found == {
        100: Duty("vCPU 0", frozenset((2,)), "fifo:5"),
        101: Duty("vCPU 1", frozenset((3,)), "fifo:5"),
        102: Duty("iothread io", frozenset((1,)), ""),
        99: Duty("emulator", frozenset((0, 1)), ""),
        103: Duty("emulator", frozenset((0, 1)), ""),
    }


@pytest.mark.parametrize(
    ("cpus", "dedicated", "online", "fence", "expected"),
    [
        ("2", True, ONLINE, None, ("2", "fifo:5")),
        ("2", True, ONLINE, "0-1", ("2", "fifo:5")),  # the fence is not for those who own
        ("2-4", False, ONLINE, "0-1,4-7", ("4", "fifo:5")),
        ("2", True, ONLINE - {2}, None, ("0-1", ORDINARY)),
        ("2", True, ONLINE - {0, 1, 2}, None, ("4-7", ORDINARY)),
        ("2-3", False, ONLINE - {2}, None, ("3", "fifo:5")),
    ],
)
def test_what_can_be_had(
    cpus: str, dedicated: bool, online: frozenset[int], fence: str | None, expected: tuple[str, str]
) -> None:
    held = HELD._replace(dedicated=dedicated)
    asked = Duty("vCPU 0", cpulist.parse(cpus), "fifo:5")
    found = now(asked, held, online, cpulist.parse(fence) if fence else None)
    assert (cpulist.render(found.cpus), found.scheduler) == expected


@pytest.mark.parametrize("tid", [0, 1, -3, 1 << 70])
def test_a_thread_of_somebody_else_is_nobodys_duty(tid: int) -> None:
    """root would pin it, and give it a real-time policy."""
    for named in (Named({0: tid}, {}), Named({0: os.getpid()}, {"io": tid})):
        with pytest.raises(QmpError, match=f"^QEMU named threads that it does not have: {tid}$"):
            threads.of_guest("", os.getpid(), HELD, named)


def test_a_name_gives_a_terminal_no_orders() -> None:
    """Nor the journal bytes that are no text."""
    rename = "open('/proc/self/comm', 'wb').write(b'\\xff\\x1b[2J\\nx'); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE) as strange:
        try:
            deadline = time.monotonic() + 10
            while threads.name("", strange.pid) != "??[2J?x":
                assert time.monotonic() < deadline
        finally:
            strange.kill()


def test_a_process_with_a_kernel_threads_name_is_not_one() -> None:
    me = os.getpid()
    rename = f"open('/proc/self/comm', 'w').write('vhost-{me}'); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE) as impostor:
        try:
            deadline = time.monotonic() + 10
            while threads.name("", impostor.pid) != f"vhost-{me}":
                assert time.monotonic() < deadline
            assert threads.of_kernel("", me) == []
        finally:
            impostor.kill()


CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    try:
        while threads.name("", process.pid) != "sleep":  # Popen returns a moment before exec has set it
            pass
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_moved_thread_is_put_back(sleeper: int) -> None:
    if len(CPUS) < 2:
        pytest.skip("one CPU: there is nowhere to move to")
    duty = Duty("vCPU 1", frozenset(CPUS[:1]), "")
    pin.pin(sleeper, duty.cpus)
    assert restore("", HELD, sleeper, duty) == ""
    pin.pin(sleeper, frozenset(CPUS))
    expected = f"was allowed on CPU {cpulist.render(CPUS)}, is back on {CPUS[0]}"
    assert restore("", HELD, sleeper, duty) == f"vCPU 1 (thread {sleeper}, sleep) {expected}"
    assert pin.allowed(sleeper) == frozenset(CPUS[:1])


def test_a_thread_that_cannot_be_moved_is_told_and_keeps_no_other() -> None:
    with fake_qemu.running("good") as fake:
        trees.write(fake.root, "/sys/devices/system/cpu/online", "0-8191")
        os.symlink("control.qmp", f"{os.path.dirname(fake.path)}/supervisor.qmp")
        os.makedirs(f"{fake.root}/run/kvmsup/claims")
        claims.write(fake.root, claim("web", ["8190", str(CPUS[-1])], emulator=str(CPUS[-1])))
        first, *others = settle.guest(fake.root, "web", fake.pid)
        assert first.startswith("vCPU 0 is not where it should be: thread ")
        assert " cannot be pinned to CPU 8190: " in first
        assert len(others) == (len(CPUS) > 1)
        *_, vcpu_1 = threads.of_process("", fake.pid)
        assert pin.allowed(vcpu_1) == frozenset(CPUS[-1:])


def test_only_what_was_read_back_is_said_to_be_back(sleeper: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cpuset that has less takes the rest away without an error; here the pin is lost whole."""
    monkeypatch.setattr(pin, "pin", lambda *_: None)
    with pytest.raises(HostError, match=f"^thread {sleeper} may run on CPU .* after it was pinned to 8190$"):
        restore("", HELD, sleeper, Duty("vCPU 0", frozenset((8190,)), ""))


def test_a_real_time_policy_is_put_back_and_not_inherited(sleeper: int) -> None:
    duty = Duty("vCPU 0", frozenset(CPUS), "rr:1")
    try:
        assert restore("", HELD, sleeper, duty).endswith(") ran as other, runs as rr:1 again")
    except HostError as error:
        pytest.skip(f"real-time policies are forbidden here: {error}")
    assert pin.scheduled(sleeper) == "rr:1"
    assert os.sched_getscheduler(sleeper) & os.SCHED_RESET_ON_FORK
    pin.schedule(sleeper, ORDINARY)
    assert pin.scheduled(sleeper) == "other"


def test_a_thread_that_has_ended_is_let_go() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    pin.pin(process.pid, frozenset(CPUS))
    pin.schedule(process.pid, "other")
    assert (pin.allowed(process.pid), pin.scheduled(process.pid)) == (None, None)
    assert threads.name("", process.pid) == ""


def test_a_foreign_thread_is_found_by_where_it_ran_last(sleeper: int) -> None:
    cpu = frozenset(CPUS[-1:])
    pin.pin(sleeper, cpu)
    busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        pin.pin(busy.pid, cpu)
        deadline = time.monotonic() + 10
        while busy.pid not in {one.tid for one in foreign.threads("", cpu, [], 0.0)}:
            assert time.monotonic() < deadline
        found = {one.tid: one for one in foreign.threads("", cpu, [sleeper], 0.0)}
        assert (found[busy.pid].name, found[busy.pid].cpu, found[busy.pid].kernel) == ("sh", CPUS[-1], False)
        assert found[busy.pid].group.startswith("/")
        assert sleeper not in found
        assert busy.pid not in {one.tid for one in foreign.threads("", frozenset((9999,)), [], 0.0)}
        assert sleeper not in {one.tid for one in foreign.threads("", cpu, [], time.monotonic() + 1000)}
    finally:
        busy.kill()
        busy.wait()
