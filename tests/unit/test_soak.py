# SPDX-License-Identifier: LGPL-2.1-or-later
"""The soak's parts that need no host: which cases there are, how each ends, going on, what is written of it."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from kvmsup.steps import STEPS
from tests.soak import cases, expect, report, results, watch
from tests.soak.cases import ALONE, BESIDE, KILL_QEMU, NEIGHBOUR, PAUSE, STOP, STOP_QEMU, Case
from tests.soak.expect import End
from tests.soak.results import Record, Results
from tests.soak.watch import Process, Sample

EVERY = cases.drawn(1)


def test_every_step_is_hit_in_every_way_and_beside_everything() -> None:
    assert len(EVERY) == len({case.name for case in EVERY}) >= 500
    assert {case.step for case in EVERY} == set(STEPS)
    assert {case.part for case in EVERY} == set(cases.PARTS)
    alone = Counter(case.how for case in EVERY if case.beside == ALONE)
    assert alone == dict.fromkeys(("error", "kill", "stop"), len(STEPS))
    assert {(case.how, case.beside) for case in EVERY} == {
        *(("error", ALONE), ("kill", ALONE), ("stop", ALONE)),
        *((how, beside) for how in ("kill", "stop", "pause") for beside in BESIDE),
    }


def test_the_order_is_the_seeds_and_begins_with_every_step() -> None:
    assert cases.drawn(1) == EVERY
    assert cases.drawn(2) != EVERY
    assert sorted(cases.drawn(2)) == sorted(EVERY)
    assert sorted(case.step for case in EVERY[: len(STEPS)]) == sorted(STEPS)


def test_what_was_run_is_not_run_again() -> None:
    done = {case.name for case in EVERY[:3]}
    assert cases.remaining(EVERY, done, 2) == EVERY[3:5]
    assert cases.remaining(EVERY, {case.name for case in EVERY}, None) == []


def test_qemu_is_hit_where_there_is_one() -> None:
    hit = {case.part for case in EVERY if case.beside in (KILL_QEMU, STOP_QEMU)}
    assert hit == {"attach", "apply", "stop"}


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (Case("setup.reserve", "error", ALONE), End.REFUSED),
        (Case("create.images", "kill", ALONE), End.REFUSED),
        (Case("attach.look-again", "error", ALONE), End.REFUSED),
        (Case("attach.pin", PAUSE, "daemon-reload"), End.RUNS),
        (Case("attach.pin", PAUSE, KILL_QEMU), End.REFUSED),
        (Case("attach.look-again", PAUSE, STOP_QEMU), End.RUNS),
        (Case("attach.run", PAUSE, STOP_QEMU), End.REFUSED),
        (Case("apply.add", "kill", NEIGHBOUR), End.GOES_ON),
        (Case("apply.add", PAUSE, NEIGHBOUR), End.APPLIED),
        (Case("apply.add", PAUSE, STOP_QEMU), End.GOES_ON),
        (Case("apply.hold", PAUSE, STOP_QEMU), End.APPLIED),
        (Case("apply.hold", PAUSE, KILL_QEMU), End.STOPPED),
        (Case("stop.wait", STOP, KILL_QEMU), End.STOPPED),
        (Case("release.pages", "kill", ALONE), End.UNRELEASED),
        (Case("release.pages", PAUSE, NEIGHBOUR), End.STOPPED),
    ],
)
def test_ends(case: Case, wanted: End) -> None:
    assert expect.end(case) is wanted


def test_whom_a_neighbour_waits_for() -> None:
    waits = {case.step for case in EVERY if expect.neighbour_waits(case)}
    assert {"setup.claims", "setup.record", "apply.claims", "apply.hold", "release.claim"} <= waits
    assert not waits & {"setup.lock", "apply.lock", "release.lock", "attach.pin", "create.images", "stop.quit"}


def record(name: str, *, ok: bool = True, part: str = "faults") -> Record:
    return Record(part, name, ok, 12.0, "2026-01-02T03:04:05+00:00", "" if ok else "a claim of tiny\nmore")


def test_results_go_on_where_they_were_cut_off(tmp_path: Path) -> None:
    one = Results("key", tmp_path / "record")
    assert one.read() == []
    one.add(record("a"))
    one.add(record("b", ok=False))
    with open(one.place, "a") as file:
        file.write('{"part": "faults", "na')
    assert [(found.name, found.ok) for found in one.read()] == [("a", True), ("b", False)]
    assert one.done("faults") == {"a", "b"}
    assert one.done("faults", again=True) == {"a"}
    one.add(record("b"))
    assert [(found.name, found.ok) for found in one.read()] == [("a", True), ("b", True)]
    assert one.done("hour") == set()


def test_another_version_adds_to_the_record(tmp_path: Path) -> None:
    before, now = (Results(key, tmp_path / "record") for key in ("before", "now"))
    for name, ok in (("c", True), ("a", True), ("b", False)):
        before.add(record(name, ok=ok))
    assert now.done("faults") == set()
    assert sorted("abcd", key=now.longest_ago("faults")) == ["b", "d", "a", "c"]
    now.add(record("c")._replace(at="2026-01-03T00:00:00+00:00"))
    assert (before.done("faults"), now.done("faults")) == ({"a", "b"}, {"c"})
    assert sorted("abcd", key=now.longest_ago("faults")) == ["b", "d", "a", "c"]
    tidy = [("a", "before"), ("b", "before"), ("c", "now")]
    assert [(one.name, one.version) for one in now.tidy()] == tidy
    assert [(one.name, one.version) for one in now.read()] == tidy
    assert len((tmp_path / "record").read_text().splitlines()) == 1 + 3


def archive(files: dict[str, bytes], mode: int = 0o644, mtime: int = 0) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as members:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), mode, mtime
            members.addfile(member, io.BytesIO(data))
    return made.getvalue()


def test_a_version_is_its_programs() -> None:
    program = {"./usr/lib/kvmsup/a.py": b"pass"}
    key = results.digest(archive(program))
    assert results.digest(archive(program, mtime=99)) == key
    assert results.digest(archive({"./usr/share/doc/kvmsup/changelog": b"new", **program})) == key
    assert results.digest(archive(program, mode=0o755)) != key
    assert results.digest(archive({"./usr/lib/kvmsup/a.py": b"past"})) != key


def sample(switches: int = 5, fds: int = 9, kib: int = 1000, lines: int = 3, data: int = 4000) -> Sample:
    process = Process(kib=kib, data=data, pss=kib, fds=fds, threads=1, switches=switches)
    return Sample({"supervisor": process, "linux": process}, lines=lines, systemd=1, bytes=100)


def test_an_hour_in_which_nothing_grew() -> None:
    assert watch.grown([sample(), sample(kib=1010)]) == []
    figures = watch.figures([sample(), sample()], 60)
    assert figures["wake-ups of the supervisor"] == 0
    assert figures["supervisor: PSS, KiB"] == "1000 → 1000"


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (sample(switches=6), "the supervisor was woken up 1 times"),
        (sample(fds=10), "supervisor: 9 descriptors became 10"),
        (sample(kib=2000), "supervisor: 1000 KiB of memory became 2000"),
        (sample(data=4004), "supervisor: 4000 KiB that it has asked for became 4004"),
        (sample(lines=4), "1 lines more in the journal"),
    ],
)
def test_an_hour_in_which_something_grew(last: Sample, told: str) -> None:
    assert told in watch.grown([sample(), sample(), last])


def test_the_section_has_what_was_run_and_says_what_was_not() -> None:
    failed = record(EVERY[1].name, ok=False)._replace(version="older")
    figures: dict[str, results.Figure] = {"start": 7, "host": "hosts on tcg, 2 CPUs"}
    crowd = record("50 guests", part="concurrency")._replace(version="abc", figures=figures)
    text = report.section("abc", [record(EVERY[0].name)._replace(version="abc"), failed, crowd])
    assert (
        f"2 of {len(EVERY)} cases, at 2 of {len(STEPS)} steps, 1 with the programs as they are now,"
        " the rest with 1 version before; 1 failed when they were run last. 12 s a case." in text
    )
    assert f" - failed: `{EVERY[1].name}`: a claim of tiny\n" in text + "\n"
    told = (
        "**concurrency, 50 guests**, 2026-01-02, with the programs as they are now: nothing was wrong.\n\n - start: 7"
    )
    assert told in text
    assert "with those of digest abc: nothing was wrong" in report.section("def", [crowd])
    assert "the digest abc; what was run: 2026-01-02; hosts on tcg, 2 CPUs." in text
    assert "Never run: hour, fuzz, guided." in text
    pieces = [
        record(f"seed {seed}, 10 inputs", part="fuzz")._replace(figures={"inputs": 10, "wrong": 1}, version=version)
        for seed, version in ((1, "older"), (7, "abc"))
    ]
    assert (
        "**Fuzz**: 20 inputs of seed 1, 7 in 24 s, 10 of them with the programs as they are now; 2 went wrong."
        in report.section("abc", pieces)
    )
    assert "panicked" not in text
    assert "panicked 1 times" in report.section("abc", [record("faults now", part="panics")])


def test_the_page_keeps_what_is_around_the_section() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.replaced(page, "new") == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="there is no"):
        report.replaced("no markers", "new")
    report.replaced(report.PAGE.read_text("utf-8"), "new")


def test_runs_side_by_side_share_the_cases() -> None:
    shares = [cases.share(EVERY, part, 3) for part in (1, 2, 3)]
    assert sorted(itertools.chain(*shares)) == sorted(EVERY)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
