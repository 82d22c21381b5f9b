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
        self.results = Results("key", place)
        self.hosts = 0
        self.ran: list[str] = []
        self.kept: list[str] = []
        self.does: Callable[[Case], None] = lambda _: None
        monkeypatch.setattr(faults, "prepare", lambda _: {})
        monkeypatch.setattr(faults, "run", self._run)
        monkeypatch.setattr(soak_main, "keep", lambda _, name: self.kept.append(name))
        monkeypatch.setattr(soak_main, "_BATCH", FEW)

    def _run(self, _host: Host, _base: object, case: Case) -> None:
        self.ran.append(case.name)
        self.does(case)

    def soak(self, *arguments: str) -> soak_main.Soak:
        bench = self

        class Soak(soak_main.Soak):
            @contextlib.contextmanager
            def host(self) -> Iterator[Host]:
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
