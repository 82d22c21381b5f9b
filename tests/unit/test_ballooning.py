# SPDX-License-Identifier: LGPL-2.1-or-later
"""The supervisor's balloons over time: the real task and QMP, with guests and a host that live by their own clock."""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup.cli import balloon as verb
from kvmsup.effects import claims, glance, systemctl
from kvmsup.entry.resident import ballooning
from kvmsup.entry.resident.ballooning import Ballooning
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model.pressure import HostMemory
from kvmsup.plan import balloon as policy
from kvmsup.plan import paths
from kvmsup.plan.balloon import MIB
from tests.unit import trees
from tests.unit.hosts import claim
from tests.unit.trees import Systemctl
from tests.unit.trees import systemctl as fake_systemctl

__all__ = ["fake_systemctl"]  # a fixture

GIB = 1024 * MIB
STEP_SECONDS = 0.1
UNSET = (1 << 64) - 1


class Guest:
    """A QEMU and its guest: uses `need`, has `cache` of what the rest allows; `speed` is in bytes a second."""

    def __init__(
        self, name: str, size: int, need: int, *, cache: int = 0, least: int = 0, speed: int = 4 * GIB
    ) -> None:
        self.name, self.size, self.need, self.wants, self.speed = name, size, need, cache, speed
        self.least = least or size // 16
        self.actual = self.target = size
        self.swapped = 0
        self.seconds = 0  # between two polls
        self.polled = 0.0
        self.stats: dict[str, int] = {}
        self.last = 0
        self.lies: dict[str, int] = {}  # what it tells instead of the truth
        self.answers = True  # whether its driver does
        self.asked: list[int] = []
        self.lowest = size  # that was ever available
        self.pid = os.getpid()  # QEMU's, which is where the socket leads

    @property
    def cache(self) -> int:
        return max(0, min(self.wants, self.actual - self.need))

    @property
    def resident(self) -> int:
        return min(self.need, self.actual) + self.cache

    def live(self, wall: float) -> None:
        """The driver moves towards its target, and swaps out what is in its way."""
        step = int(self.speed * STEP_SECONDS)
        self.actual += max(-step, min(step, self.target - self.actual))
        self.swapped = max(self.swapped, self.need - self.actual)
        self.lowest = min(self.lowest, self.actual - self.need)
        if self.seconds and wall >= self.polled + self.seconds:
            self.tell(wall)

    def tell(self, wall: float) -> None:
        self.polled = wall
        if self.answers:
            available = max(0, self.actual - self.need)
            self.stats = {
                "stat-swap-out": self.swapped,
                "stat-available-memory": available,
                "stat-free-memory": available - self.cache,
                "stat-major-faults": 0,
            } | self.lies
            self.last = int(wall)

    def answer(self, command: str, arguments: dict[str, Any], wall: float) -> Any:
        match command, arguments.get("property"):
            case "query-balloon", _:
                return {"actual": self.lies.get("actual", self.actual)}
            case "balloon", _:
                self.target = arguments["value"]
                self.asked.append(self.target)
            case "qom-set", _:
                self.seconds = arguments["value"]
                if self.seconds:
                    self.tell(wall)
            case "qom-get", "guest-stats-polling-interval":
                return self.seconds
            case "qom-get", "guest-stats":
                return {"stats": self.stats, "last-update": self.last}
        return {}


class World:
    """A host, the memory that others use there, and its guests; `now` is on time.monotonic(), `wall` the clock."""

    def __init__(self, root: str, units: Systemctl) -> None:
        self.root, self.units = root, units
        self.now, self.wall = 1000.0, time.time()
        self.guests: dict[str, Guest] = {}
        self.total = self.others = 0
        self.stopping = threading.Event()
        self.servers: list[threading.Thread] = []
        self.tasks: list[Ballooning] = []

    def task(self) -> Ballooning:
        """A supervisor that has just been started."""
        self.tasks.append(Ballooning(self.root))
        return self.tasks[-1]

    def monotonic(self) -> float:
        return self.now

    def add(self, *guests: Guest) -> None:
        for one in guests:
            self.guests[one.name] = one
            held = claim(one.name, dedicated=False)
            claims.write(self.root, held._replace(size=one.size, balloon=one.least, balloon_auto=True))
            path = Path(self.root + paths.socket(one.name, "supervisor.qmp"))
            path.parent.mkdir(parents=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(0.1)
            self.servers.append(threading.Thread(target=self._serve, args=(listener, one)))
            self.servers[-1].start()
        log = self.units({})
        shown = [f"Id=kvm@{one.name}.service\nActiveState=active\nMainPID={one.pid}\n" for one in self.guests.values()]
        (log.parent / "show").write_text("\n".join(shown))

    def _serve(self, listener: socket.socket, one: Guest) -> None:
        with listener:
            while not self.stopping.is_set():
                try:
                    stream = listener.accept()[0]
                except TimeoutError:
                    continue
                with stream, stream.makefile("rwb") as lines:
                    self._speak(lines, one)

    def _speak(self, lines: Any, one: Guest) -> None:
        def say(message: dict[str, Any]) -> None:
            lines.write(json.dumps(message).encode() + b"\n")
            lines.flush()

        try:
            say({"QMP": {}})
            for line in lines:
                asked = json.loads(line)
                say({"return": one.answer(asked["execute"], asked.get("arguments", {}), self.wall)})
        except OSError:
            pass

    @property
    def available(self) -> int:
        return self.total - self.others - sum(one.resident for one in self.guests.values())

    def tell(self) -> None:
        """What the kernel has in /proc. All QEMUs are this process: each has an equal part of what they occupy."""
        amounts = f"MemTotal: {self.total >> 10} kB\nMemAvailable: {max(0, self.available) >> 10} kB"
        trees.write(self.root, "/proc/meminfo", amounts)
        resident = sum(one.resident for one in self.guests.values()) // max(1, len(self.guests))
        trees.write(self.root, f"/proc/{os.getpid()}/status", f"RssAnon: {resident >> 10} kB\nRssShmem: 0 kB")

    def run(self, task: Ballooning, seconds: float, every: Callable[[int], None] = lambda _: None) -> None:
        """Let time pass, with a turn for the task whenever it is due; `every` step has its number."""
        for number in range(round(seconds / STEP_SECONDS)):
            self.now += STEP_SECONDS
            self.wall += STEP_SECONDS
            for one in self.guests.values():
                one.live(self.wall)
            every(number)
            due = task.due()
            if due is not None and due <= self.now:
                self.tell()
                task.act()


@pytest.fixture
def world(fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # The path of a socket has 107 bytes (unix(7)).
    with tempfile.TemporaryDirectory() as root:
        Path(f"{root}/run/kvmsup/claims").mkdir(parents=True)
        found = World(root, fake_systemctl)
        monkeypatch.setattr(ballooning, "time", found)
        try:
            yield found
        finally:
            found.stopping.set()
            for server in found.servers:
                server.join()
            for task in found.tasks:
                task.alarm.close()


def test_jobs_of_other_units_do_not_hasten_a_guest_into_swap(world: World) -> None:
    big = Guest("big", 16 * GIB, 7 * GIB, cache=9 * GIB)
    world.add(big)
    world.total, world.others = 32 * GIB, 22 * GIB
    task = world.task()
    world.run(task, 60, lambda number: task.job_finished("kvm@other.service") if number % 2 == 0 else None)
    assert big.swapped == 0
    assert big.lowest >= big.actual // 10
    # Once in five seconds, by a tenth at the most.
    smaller = [size for before, size in zip([big.size, *big.asked], big.asked, strict=False) if size < before]
    assert 3 <= len(smaller) <= 13
    assert big.asked[0] >= big.size * 9 // 10


def test_alarms_do_not_either(world: World) -> None:
    big = Guest("big", 16 * GIB, 7 * GIB, cache=9 * GIB)
    world.add(big)
    world.total, world.others = 32 * GIB, 22 * GIB
    task = world.task()
    world.run(task, 7, lambda _: task.alarmed())
    assert big.target >= big.size * 8 // 10 - MIB
    world.run(task, 53, lambda _: task.alarmed())
    assert big.swapped == 0
    assert big.lowest >= big.actual // 10


def test_left_alone_it_is_no_slower_than_its_turns(world: World) -> None:
    """Two guests, one of which gives slowly: the other need not wait for it, and the host is well in the end."""
    quick, slow = Guest("quick", 16 * GIB, 4 * GIB, cache=12 * GIB), Guest("slow", 8 * GIB, 2 * GIB, speed=GIB // 16)
    world.add(quick, slow)
    world.total, world.others = 32 * GIB, 16 * GIB
    task = world.task()
    # Once there are statistics, one step in each turn.
    world.run(task, 4)
    assert quick.target == -(-(quick.size * 9 // 10) // MIB) * MIB
    world.run(task, 5)
    assert quick.target < quick.size * 82 // 100
    world.run(task, 40)
    assert world.available >= policy.marks(_host(world)).low
    assert quick.swapped == slow.swapped == 0


def _host(world: World) -> HostMemory:
    return HostMemory(world.total, world.available, 0, 0, 0, None)


def test_what_was_asked_for_is_not_forgotten(world: World) -> None:
    """It did not give at once, the host did without, and it gave later."""
    one = Guest("one", 16 * GIB, 7 * GIB, cache=9 * GIB, speed=0)
    world.add(one)
    world.total, world.others = 32 * GIB, 15 * GIB + 512 * MIB
    task = world.task()
    world.run(task, 4)
    assert one.target < one.size == one.actual
    world.others = 13 * GIB + 512 * MIB  # between the marks
    world.run(task, 30)
    one.speed = GIB
    world.run(task, 30)
    assert one.actual < one.size
    world.others = 0
    world.run(task, 30)
    assert one.actual == one.target == one.size
    # With nothing in its balloon it is left to sleep.
    assert one.seconds == 0


def test_the_next_supervisor_does_not_know_what_was_asked_for(world: World) -> None:
    one = Guest("one", 16 * GIB, 7 * GIB, cache=9 * GIB, speed=0)
    world.add(one)
    world.total, world.others = 32 * GIB, 15 * GIB + 512 * MIB
    world.run(world.task(), 4)
    assert one.target < one.size == one.actual
    world.others = 0
    next_task = world.task()
    world.run(next_task, 1)
    one.speed = GIB
    world.run(next_task, 60)
    assert one.actual == one.target == one.size


HUGE = 1 << 62


@pytest.mark.parametrize(
    "lies",
    [
        {"stat-free-memory": HUGE, "stat-available-memory": HUGE},
        {"stat-free-memory": 0, "stat-available-memory": 0},
        {"stat-free-memory": 10**400, "stat-swap-out": 10**400, "stat-major-faults": -(10**400)},
        {"actual": -HUGE},
        {"actual": HUGE},
        {"actual": 0, "stat-available-memory": 0},
        {"stat-swap-out": 0},  # and more each time
    ],
    ids=lambda lies: "-".join(lies),
)
def test_a_guest_that_lies_keeps_its_own_memory_and_no_more(world: World, lies: dict[str, int]) -> None:
    honest = Guest("honest", 16 * GIB, 4 * GIB, cache=12 * GIB)
    liar = Guest("liar", 8 * GIB, 7 * GIB, cache=GIB, speed=0 if "actual" in lies else GIB)
    liar.lies = lies
    world.add(honest, liar)
    world.total, world.others = 32 * GIB, 10 * GIB

    def more(_: int) -> None:
        if lies.get("stat-swap-out", HUGE) < HUGE:
            lies["stat-swap-out"] += 100 * MIB

    task = world.task()
    world.run(task, 90, more)
    assert world.available >= policy.marks(_host(world)).low
    assert honest.actual < honest.size
    world.others = 0
    world.run(task, 90, more)
    assert honest.actual == honest.size
    assert honest.swapped == 0
    assert all(liar.least <= size <= liar.size for size in liar.asked)


def test_a_clock_that_jumps(world: World) -> None:
    """Statistics are new when they are others than before, whatever the host's clock says."""
    told, silent = Guest("told", 16 * GIB, 4 * GIB, cache=12 * GIB), Guest("silent", 16 * GIB, 4 * GIB, cache=12 * GIB)
    world.add(told, silent)
    world.total, world.others = 48 * GIB, 30 * GIB
    task = world.task()
    world.run(task, 4)
    assert silent.target == told.target < told.size
    silent.answers = False
    for jump in (-3600.0, 7200.0, -10.0):
        world.wall += jump
        told.polled = world.wall  # QEMU polls by a clock of its own
        before = told.target, silent.target
        world.run(task, 11)
        assert told.target < before[0]
    assert silent.target == before[1]
    assert told.swapped == silent.swapped == 0


def test_a_time_beyond_all_clocks_ends_nothing(world: World) -> None:
    one = Guest("one", 16 * GIB, 4 * GIB, cache=12 * GIB)
    world.add(one)
    world.total, world.others = 32 * GIB, 16 * GIB
    one.tell(world.wall)
    one.answers, one.last = False, 10**400
    world.run(world.task(), 20)
    assert one.target == one.size


def test_systemd_that_does_not_answer_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise HostError("systemctl show: Connection timed out")

    one = Guest("one", 16 * GIB, 4 * GIB, cache=12 * GIB)
    world.add(one)
    world.total, world.others = 32 * GIB, 16 * GIB
    task = world.task()
    with monkeypatch.context() as patched:
        patched.setattr(systemctl, "show", busy)
        with pytest.raises(HostError):
            task.act()
    assert (task.due() or 0) > world.now
    world.run(task, 10)
    assert one.target < one.size


def test_nobody_wakes_up_without_such_a_guest(world: World) -> None:
    task = world.task()
    world.run(task, 2)
    assert task.due() is None
    task.job_finished("kvm@other.service")
    first = task.due() or 0
    assert world.now < first <= world.now + 1
    # One job after the other postpones nothing.
    world.now += STEP_SECONDS
    task.job_finished("kvm@other.service")
    assert task.due() == first
    world.run(task, 2)
    assert task.due() is None


def test_a_size_by_hand_that_is_no_multiple_of_1m(monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim("web")._replace(size=2 * GIB, balloon=64 * MIB)
    seen = glance.Seen("web", "active", "", "", os.getpid(), "", 0.0, "", held, True)
    monkeypatch.setattr(glance, "guests", lambda *_: [seen])
    for size, why in ((2 * GIB + 512, "2147484160 bytes are not a multiple of 1M"), (3 * GIB, "3G is not a size")):
        with pytest.raises(KvmsupError, match=why):
            verb.run(argparse.Namespace(guest="web", size=size, json=False))
