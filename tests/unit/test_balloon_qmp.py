# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU says of a balloon, in the words of its own answers and of wrong ones; and the kernel's alarm."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kvmsup.effects import balloon, qmp
from kvmsup.effects.alarm import Alarm
from kvmsup.errors import QmpError

UNSET = (1 << 64) - 1
# As QEMU 10.0 answers for a Linux 6.12.
TOLD = {
    "stat-swap-out": 4096,
    "stat-available-memory": 171151360,
    "stat-free-memory": 176828416,
    "stat-minor-faults": 4223,
    "stat-major-faults": 7,
    "stat-total-memory": 486658048,
    "stat-swap-in": 0,
    "stat-disk-caches": 5513216,
    "stat-htlb-pgalloc": 0,
    "stat-htlb-pgfail": 0,
}
SILENT = dict.fromkeys(TOLD, UNSET)
Answer = Callable[[str, dict[str, Any]], Any]


class Device:
    """The balloon of a QEMU: answers as it does, from what the guest's driver has told."""

    def __init__(self, stats: dict[str, int], last: float, seconds: int = 0) -> None:
        self.stats, self.last, self.seconds = stats, last, seconds
        self.answers = True  # whether there is a driver that answers when it is polled
        self.polled: list[int] = []
        self.size = 0

    def __call__(self, command: str, arguments: dict[str, Any]) -> Any:
        match command, arguments.get("property"):
            case "query-balloon", _:
                return {"actual": 268435456}
            case "balloon", _:
                self.size = arguments["value"]
            case "qom-set", "guest-stats-polling-interval":
                before, self.seconds = self.seconds, arguments["value"]
                self.polled.append(self.seconds)
                # Polling that goes on asks only when its time has come (balloon_stats_set_poll_interval).
                if self.seconds and not before and self.answers:
                    self.stats, self.last = TOLD, time.time()
            case "qom-get", "guest-stats-polling-interval":
                return self.seconds
            case "qom-get", "guest-stats":
                return {"stats": self.stats, "last-update": int(self.last)}
        return {}


def speak(answer: Answer, use: Callable[[qmp.Conversation], Any]) -> Any:
    """What `use` returns of a conversation in which `answer` answers."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, theirs.makefile("rwb") as stream:
            for line in stream:
                asked = json.loads(line)
                told = answer(asked["execute"], asked.get("arguments", {}))
                stream.write(json.dumps({"return": told}).encode() + b"\n")
                stream.flush()

    server = threading.Thread(target=serve)
    server.start()
    try:
        with qmp.Conversation(ours, os.getpid(), time.monotonic() + 20) as talk:
            return use(talk)
    finally:
        server.join()


def test_what_the_driver_has_told() -> None:
    assert speak(Device(TOLD, 1700000000.7), balloon.statistics) == (171151360, 176828416, 4096, 7, 1700000000)


def test_an_old_driver_tells_what_is_free_only() -> None:
    old = SILENT | {"stat-free-memory": 5 << 20}
    assert speak(Device(old, time.time()), balloon.statistics)[:4] == (5 << 20, 5 << 20, 0, 0)


@pytest.mark.parametrize(("stats", "last"), [(SILENT, 0), (SILENT, 1), (TOLD, 0), ({}, 5)])
def test_a_guest_without_a_driver_has_told_nothing(stats: dict[str, int], last: int) -> None:
    assert speak(Device(stats, last), balloon.statistics) is None


def test_asked_once_it_is_not_polled_any_further() -> None:
    device = Device(SILENT, 0)
    assert speak(device, lambda talk: balloon.ask(talk, 5)).available == 171151360
    assert device.polled == [1, 0]


def test_statistics_of_long_ago_are_not_taken_for_an_answer() -> None:
    device = Device(TOLD, time.time() - 60)
    device.answers = False
    assert speak(device, lambda talk: balloon.ask(talk, 0.2)) is None
    assert device.polled == [1, 0]


@pytest.mark.parametrize("clock", [0, 3600])
@pytest.mark.parametrize("seconds", [1, 2])
def test_who_was_killed_while_asking_is_cleared_up_after(seconds: int, clock: int) -> None:
    device = Device(TOLD | {"stat-available-memory": 1}, time.time() - 60 + clock, seconds)
    assert speak(device, lambda talk: balloon.ask(talk, 5)).available == 171151360
    assert device.seconds == 0


def test_old_statistics_are_none_whatever_becomes_of_the_clock() -> None:
    for last in (time.time() - 60, time.time() + 3600):
        device = Device(TOLD, last, seconds=1)
        device.answers = False
        assert speak(device, lambda talk: balloon.ask(talk, 0.1)) is None
        assert device.seconds == 0
        assert speak(device, balloon.latest) is None
        assert device.polled[-1] == 0
    assert speak(Device(TOLD, time.time() - 3), balloon.latest).available == 171151360


def test_polling_again_is_no_change() -> None:
    device = Device(TOLD, 0, seconds=2)
    assert not speak(device, lambda talk: balloon.poll(talk, 2))
    assert speak(device, lambda talk: balloon.poll(talk, 0))


@pytest.mark.parametrize("last", [10**400, -(10**400)])
def test_a_time_beyond_all_clocks(last: int) -> None:
    device = Device(TOLD, 0)
    device.last = last
    device.answers = False
    assert speak(device, balloon.statistics).last == last
    assert speak(device, balloon.latest) is None
    assert speak(device, lambda talk: balloon.ask(talk, 0.1)) is None


def test_sizes() -> None:
    device = Device(TOLD, 0)
    assert speak(device, balloon.actual) == 256 << 20
    speak(device, lambda talk: balloon.resize(talk, 300 << 20))
    assert device.size == 300 << 20


@pytest.mark.parametrize("answer", [{}, [], None, {"actual": "much"}, {"stats": [1], "last-update": 5}, {"stats": 1}])
def test_nonsense_is_a_sentence(answer: Any) -> None:
    for use in (balloon.actual, balloon.statistics):
        with pytest.raises(QmpError, match="not as its (schema|documentation) says"):
            speak(lambda *_: answer, use)


def test_an_alarm_that_cannot_be_had(tmp_path: Any) -> None:
    alarm = Alarm(str(tmp_path))
    try:
        assert not alarm.arm()
        assert not alarm.armed
        alarm.disarm()
    finally:
        alarm.close()
