# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the soak goes through its cases: hosts anew where they are due, panics of the rig, going on; without a lab."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.lab.errors import LabPanic
from tests.lab.host import Host
from tests.lab.progress import Silent
from tests.soak import __main__ as soak_main
from tests.soak import cases, faults, report
from tests.soak.cases import Case
from tests.soak.results import Results

FEW = 5


class Bench:
    """Counts hosts, and does to cases what a test says."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results = Results("key", place / "record")
        self.hosts = 0
        self.ran: list[str] = []
        self.kept: list[str] = []
        self.does: Callable[[Case], None] = lambda _: None
        self.guests = {"": "tiny"}  # whose case needs another guest, by name; "" for the rest
        self.handed: list[str] = []
        self.ended: list[str] = []
        monkeypatch.setattr(faults, "prepare", lambda _: {})
        monkeypatch.setattr(faults, "run", self._run)
        monkeypatch.setattr(faults, "victim", self._victim)
        monkeypatch.setattr(faults, "over", lambda _host, _base, name: self.ended.append(name))
        monkeypatch.setattr(soak_main, "keep", lambda _, name: self.kept.append(name))
        monkeypatch.setattr(soak_main, "_BATCH", FEW)

    def _victim(self, case: Case) -> str:
        return self.guests.get(case.name, self.guests[""])

    def _run(self, _host: Host, _base: object, case: Case, up: str) -> str:
        self.ran.append(case.name)
        self.handed.append(up)
        self.does(case)
        return self._victim(case)

    def soak(self, *arguments: str) -> soak_main.Soak:
        bench = self

        class Soak(soak_main.Soak):
            @contextlib.contextmanager
            def host(self, *, linux_guests: bool = True) -> Iterator[Host]:  # noqa: ARG002
                bench.hosts += 1
                self.rig = cast(Any, type("Rig", (), {"accel": "none"}))
                yield cast(Host, None)

        asked = soak_main._parser().parse_args(["faults", *arguments])
        one = Soak(asked, self.results, Path("none.deb"))
        one.progress = Silent()
        return one


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def names(count: int) -> list[str]:
    return [case.name for case in cases.drawn(1)[:count]]


def test_a_second_run_goes_on(bench: Bench) -> None:
    soak_main._run(bench.soak("--count", "7"), "faults")
    assert (bench.ran, bench.hosts) == (names(7), 2)
    soak_main._run(bench.soak("--count", "2"), "faults")
    assert bench.ran == names(9)
    assert [one.name for one in bench.results.read()] == names(9)
    assert all(one.ok and str(one.figures["host"]).startswith("hosts on none") for one in bench.results.read())


def test_a_case_has_the_guest_of_the_one_before(bench: Bench) -> None:
    first, second, third, fourth = names(4)
    bench.guests |= {first: "tiny", second: "elastic", third: "tiny", fourth: "elastic"}
    soak_main._run(bench.soak("--count", "4"), "faults")
    assert bench.ran == [second, fourth, first, third]
    assert bench.handed == ["", "elastic", "elastic", "tiny"]
    assert bench.ended == ["tiny"]


def test_what_the_last_guest_of_a_host_leaves_fails_its_case(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def over(_host: Host, _base: object, name: str) -> None:
        raise faults.Wrong(f"there is a claim of {name}")

    monkeypatch.setattr(faults, "over", over)
    soak_main._run(bench.soak("--count", "2"), "faults")
    assert [one.ok for one in bench.results.read()] == [True, False]


def test_after_a_case_that_fails_there_is_another_host(bench: Bench) -> None:
    bad = names(2)[1]

    def does(case: Case) -> None:
        if case.name == bad:
            raise faults.Wrong("a claim of tiny")

    bench.does = does
    soak = bench.soak("--count", "4")
    soak_main._run(soak, "faults")
    assert (bench.ran, bench.hosts, bench.kept, soak.failed) == (names(4), 2, [bad], 1)
    assert {one.name: one.detail for one in bench.results.read() if not one.ok} == {bad: "a claim of tiny"}
    bench.does, bench.ran = lambda _: None, []
    soak_main._run(bench.soak("--count", "1"), "faults")
    assert bench.ran == names(5)[4:]
    soak_main._run(bench.soak("--again", "--count", "1"), "faults")
    assert bench.ran[1:] == [bad]


def test_a_panic_of_the_rig_is_repeated_and_counted(bench: Bench) -> None:
    left = [3]

    def does(case: Case) -> None:
        if case.name == names(2)[1] and left[0] > 1:
            left[0] -= 1
            raise LabPanic("Kernel panic")

    bench.does = does
    soak = bench.soak("--count", "3")
    soak_main._run(soak, "faults")
    assert (bench.ran, soak.failed) == ([*names(2), names(2)[1], *names(3)[1:]], 0)
    assert bench.results.done("faults") == set(names(3))
    assert len(bench.results.done("panics")) >= 1
    assert "panicked" in report.section("key", bench.results.read())


def test_a_rig_that_only_panics_is_given_up(bench: Bench) -> None:
    def does(_: Case) -> None:
        raise LabPanic("Kernel panic")

    bench.does = does
    soak = bench.soak("--count", "3")
    soak_main._run(soak, "faults")
    assert (len(bench.ran), soak.failed) == (3, 1)
    assert not bench.results.done("faults")
