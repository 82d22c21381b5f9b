# SPDX-License-Identifier: LGPL-2.1-or-later
"""KSM: when it runs and how hard, and that its knobs are as they were found whatever happens in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvmsup.effects import claims, files, ksm
from kvmsup.entry import restore
from kvmsup.entry.resident.merging import Merging
from kvmsup.errors import HostError
from kvmsup.model.ksm import Figures, Merged, Settings
from kvmsup.model.pressure import HostMemory, Stall
from kvmsup.plan import ksm as plan
from kvmsup.plan.ksm import BURST, OFF, SLOW, WAIT, Look, State
from tests.unit import trees
from tests.unit.hosts import claim

GIB = 1 << 30
KNOBS = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "advisor_mode": "[none] scan-time"}
AMPLE, SHORT = 0.8, 0.1


def memory(available: float, stall: float | None = 0.0, hugepages: int = 0) -> HostMemory:
    """Of 100 GiB beside `hugepages`, with a share `available`."""
    stalls = None if stall is None else Stall(stall, 0.0)
    return HostMemory(100 * GIB + hugepages, int(available * 100 * GIB), 0, 0, hugepages, stalls)


def look(
    at: float,
    *,
    guests: str = "a",
    available: float = SHORT,
    stall: float | None = 0.0,
    scans: int = 0,
    sharing: int = 0,
    loose: int = 0,
    cpu: float = 0.0,
    resident: int = 100_000,
) -> Look:
    figures = Figures(sharing // 2, sharing, loose, 0, scans, cpu)
    return Look(at, frozenset(guests.split()), resident, figures, memory(available, stall))


def follow(policy: str, looks: list[Look], state: State | None = None) -> list[plan.Step]:
    found = []
    for one in looks:
        found.append(plan.step(policy, state or State(), one))
        state = found[-1].state
    return found


def phases(steps: list[plan.Step]) -> list[str]:
    return [step.state.phase for step in steps]


# Full scans: nothing, then all of it, then nothing more.
MERGES = [
    look(0),
    look(1, scans=1, cpu=0.5),
    look(2, scans=2, sharing=50_000, cpu=1.0),
    look(3, scans=3, sharing=90_000, cpu=1.5),
    look(4, scans=3, sharing=90_100, cpu=1.8),
    look(5, scans=4, sharing=90_200, cpu=2.0),
]


def test_a_burst_ends_when_a_full_scan_gives_nothing() -> None:
    steps = follow("always", MERGES)
    assert phases(steps) == [BURST] * 5 + [SLOW]
    assert [bool(step.told) for step in steps] == [True, False, False, False, False, True]
    assert steps[0].state.settings == Settings(5000, 10)
    assert steps[-1].state.settings == Settings(100, 200)
    assert steps[-1].told == (
        "KSM goes on slowly after a burst of 5 s; 352 MiB saved, ksmd has used 2.0 s of CPU, 2.0 s of it for this"
    )
    assert [step.again for step in steps] == [1.0] * 5 + [60.0]


def test_a_burst_without_end_is_ended() -> None:
    endless = [look(float(at), scans=at, sharing=int(1000 * 1.02**at)) for at in range(700)]
    assert phases(follow("always", endless)).index(SLOW) == 600


def test_slow_scans_a_large_host_in_ten_minutes() -> None:
    known = 3_000_000
    steps = follow("always", [look(0), look(9, scans=3, loose=known)])
    chosen = steps[-1].state.settings
    assert chosen
    assert known * chosen.sleep / 1000 / chosen.pages == pytest.approx(600, rel=0.01)


def test_new_memory_is_for_a_burst_that_waits_until_the_last_is_paid_for() -> None:
    """2 s of CPU at 30 % are paid for 6.7 s after they began."""
    state = follow("always", MERGES)[-1].state
    early = look(6, guests="a b", scans=4, sharing=90_200, cpu=2.0)
    (step,) = follow("always", [early], state)
    assert (step.state.phase, step.told) == (SLOW, "")
    assert step.again == 1.0
    (step,) = follow("always", [early._replace(at=7.0)], step.state)
    assert (step.state.phase, step.told) == (BURST, "KSM is in a burst for b")


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (look(60, scans=4, sharing=90_200, cpu=2.0), ""),
        (look(60, scans=4, sharing=90_200, cpu=2.0, resident=109_000), ""),
        (look(60, scans=4, sharing=90_200, cpu=2.0, resident=150_000), "195 MiB that guests have taken since"),
        (look(60, scans=4, sharing=90_200, cpu=2.0, loose=50_000), "195 MiB that have changed since"),
        (look(60, guests="b", scans=4, sharing=90_200, cpu=2.0), "b"),
    ],
)
def test_what_is_new(after: Look, told: str) -> None:
    (step,) = follow("always", [after], follow("always", MERGES)[-1].state)
    assert step.told == (f"KSM is in a burst for {told}" if told else "")


def test_ksmd_is_held_under_its_cap() -> None:
    """At 5000 pages and 10 ms it takes 100 % of a CPU here: 1 s of work in a second."""
    looks = [look(float(at), scans=at, sharing=at * 50_000, cpu=float(at)) for at in range(6)]
    sleeps = [step.state.settings.sleep for step in follow("always", looks) if step.state.settings]
    assert sleeps[:3] == [10, 10, 10]
    # 0.99 s of work in each of its turns of 1 s takes 2.31 s of sleep for 30 %.
    assert sleeps[3] == 2310
    state = follow("always", MERGES)[-1].state
    (step,) = follow("always", [look(65, scans=4, sharing=90_200, cpu=14.0)], state)
    assert step.state.settings == Settings(100, 950)  # 20 % of a CPU: 50 ms of work to 200 ms of sleep


def test_the_slow_phase_recovers() -> None:
    """What a turn costs is measured, so that a long sleep does not keep it slow when turns cost little again."""
    state = follow("always", MERGES)[-1].state
    busy = look(65, scans=4, sharing=90_200, cpu=44.0)  # 70 % of a CPU: 467 ms of work to 200 ms of sleep
    (step,) = follow("always", [busy], state)
    assert step.state.settings == Settings(100, 8867)
    # As dear as before: 467 ms in each turn of 9.33 s are 5 %, and the sleep stays.
    (same,) = follow("always", [look(125, scans=4, sharing=90_200, cpu=47.0)], step.state)
    assert same.state.settings and same.state.settings.sleep == pytest.approx(8867, rel=0.01)
    # A second later ksmd sleeps all along, which says nothing.
    (asleep,) = follow("always", [look(66, scans=4, sharing=90_200, cpu=44.0)], step.state)
    assert asleep.state.settings == Settings(100, 8867)
    # An idle minute, and one at a tenth of the price.
    (idle,) = follow("always", [look(125, scans=4, sharing=90_200, cpu=44.0)], step.state)
    assert idle.state.settings == Settings(100, 200)
    (cheap,) = follow("always", [look(125, scans=4, sharing=90_200, cpu=44.3)], step.state)
    assert cheap.state.settings and cheap.state.settings.sleep == pytest.approx(847, rel=0.01)


def test_the_slow_phase_follows_what_is_known() -> None:
    """Four times as many pages at a time are four times the work."""
    known = 1_200_000
    (step,) = follow("always", [look(0), look(9, scans=3, loose=known)])[1:]
    assert step.state.settings == Settings(400, 200)
    gone = look(69, scans=3, loose=known // 4, cpu=12.0)  # 20 % of a CPU: 50 ms for 400 pages
    (step,) = follow("always", [gone], step.state)
    assert step.state.settings == Settings(100, 238)  # 12.5 ms for 100


@pytest.mark.parametrize(
    ("available", "stall", "on"),
    [
        (0.5, 0.0, False),
        (0.5, 50.0, False),
        (0.35, 0.0, False),
        (0.35, 10.0, True),
        (0.35, None, False),
        (0.19, None, True),
    ],
)
def test_pressure(available: float, stall: float | None, on: bool) -> None:
    (step,) = follow("pressure", [look(0, available=available, stall=stall)])
    assert step.state.phase == (BURST if on else WAIT)
    assert bool(step.told) is on
    assert (step.state.settings is None) is not on
    assert step.again == (1.0 if on else 30.0 if available > 0.4 else 10.0)


def test_hugepages_are_not_memory_that_could_be_available() -> None:
    most_in_hugepages = look(0)._replace(memory=memory(0.5, hugepages=900 * GIB))
    assert phases(follow("pressure", [most_in_hugepages])) == [WAIT]


def test_pressure_ends_after_a_minute_of_calm() -> None:
    on = follow("pressure", MERGES)[-1].state
    at = [look(float(at), available=0.4, scans=4, sharing=90_200, cpu=2.0) for at in (30, 60, 89, 90)]
    steps = follow("pressure", at, on)
    assert phases(steps) == [SLOW, SLOW, SLOW, WAIT]
    assert steps[-1].told == (
        "KSM is as it was found: memory is ample again, 40% available; 352 MiB saved, ksmd has used 2.0 s of CPU"
    )
    for restless in (look(60, available=0.29), look(60, available=0.4, stall=3.0)):
        calm = restless.ksm
        looks = [at[0], restless._replace(ksm=at[0].ksm if calm else calm), at[2], at[3]]
        assert phases(follow("pressure", looks, on)) == [SLOW] * 4


def test_consent() -> None:
    given_by = [claim("a", ksm=True), claim("b"), claim("c", ksm=True, held=False)]
    assert plan.consenting(given_by) == {"a"}


LOOKS = st.lists(
    st.tuples(
        st.floats(0.5, 100),  # seconds since the last
        st.sampled_from(["", "a", "a b"]),
        st.floats(0, 1),
        st.none() | st.floats(0, 100),
        st.integers(0, 5),  # full scans more
        st.integers(0, 10**7),
        st.integers(0, 10**7),
        st.floats(0, 1),  # of one CPU
        st.integers(0, 10**7),
    ),
    max_size=40,
)


@given(st.sampled_from(plan.POLICIES), LOOKS)
def test_any_figures(
    policy: str, told: list[tuple[float, str, float, float | None, int, int, int, float, int]]
) -> None:
    state, at, scans, cpu = State(), 0.0, 0, 0.0
    bursts: list[tuple[float, float]] = []  # when each began, with ksmd's CPU seconds until then
    for after, names, available, stall, more, sharing, loose, share, resident in told:
        at, scans, cpu = at + after, scans + more, cpu + share * after
        now = look(
            at, guests=names, available=available, stall=stall, scans=scans, sharing=sharing, loose=loose, cpu=cpu,
            resident=resident,
        )  # fmt: skip
        before, (found, _, again) = state, plan.step(policy, state, now)
        state = found
        assert (found.settings is not None) == (found.phase in (BURST, SLOW))
        if policy == "never" or not names:
            assert (found.phase, found.settings, again) == (OFF, None, None)
        else:
            assert again is not None and 1.0 <= again <= 60.0
        if policy == "pressure" and before.phase in (OFF, WAIT) and available > 0.4:
            assert found.settings is None
        if found.settings:
            assert 1 <= found.settings.pages <= 5000
            assert 10 <= found.settings.sleep <= 10000
        if found.phase == BURST and before.phase != BURST:
            # The last burst that came to its end is paid for at 30 % of a CPU.
            assert at >= before.rest_until
            bursts.append((at, cpu))
        if found.phase == SLOW and before.phase == BURST and bursts:
            assert found.rest_until >= bursts[-1][0] + (cpu - bursts[-1][1]) / plan.BURST_CAP - 1e-6


# The kernel's files


def tree(root: Path, knobs: dict[str, str]) -> str:
    for name, value in knobs.items():
        trees.write(str(root), f"/sys/kernel/mm/ksm/{name}", value)
    trees.write(str(root), "/proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 900000 kB")
    (root / "run/kvmsup").mkdir(parents=True, exist_ok=True)
    return str(root)


def knobs(root: str) -> dict[str, str]:
    return {name: files.read(f"{root}/sys/kernel/mm/ksm/{name}") for name in os.listdir(f"{root}/sys/kernel/mm/ksm")}


def write_attribute(path: str, value: str) -> None:
    """In place of files.write_attribute: the kernel takes a value for the whole, and shows the choices of a mode."""
    if path.endswith("advisor_mode"):
        value = "[none] scan-time" if value == "none" else "none [scan-time]"
    Path(path).write_text(f"{value}\n")


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "write_attribute", write_attribute)


def set_to(root: str, name: str, value: str) -> None:
    trees.write(root, f"/sys/kernel/mm/ksm/{name}", value)


@pytest.mark.parametrize("found", ["0", "1", "2"])
@pytest.mark.parametrize("older", [False, True])
def test_it_is_borrowed(found: str, older: bool, tmp_path: Path) -> None:
    """Linux 6.1 has no advisor."""
    all_knobs = {**KNOBS, "run": found, "pages_to_scan": "300"}
    if older:
        del all_knobs["advisor_mode"]
    root = tree(tmp_path, all_knobs)
    assert ksm.available(root)
    for pages in (5000, 100, 5000):
        ksm.apply(root, Settings(pages, 10))
        assert not ksm.changed(root)
        assert knobs(root) == {**all_knobs, "run": "1", "pages_to_scan": str(pages), "sleep_millisecs": "10"}
    assert ksm.borrowed(root)
    for _ in range(2):
        ksm.restore(root)
        assert knobs(root) == all_knobs
    assert os.listdir(f"{root}/run/kvmsup") == []


def test_what_is_run_after_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path, KNOBS)
    ksm.apply(root, Settings(5000, 10))
    with monkeypatch.context() as broken:
        broken.setattr(files, "write_attribute", refuse)
        assert restore.main(root) == 1
    assert "the kernel refuses" in capsys.readouterr().err
    assert restore.main(root) == 0
    assert knobs(root) == KNOBS


def refuse(*_: object) -> None:
    raise HostError("the kernel refuses")


def test_what_a_killed_supervisor_was_writing_is_gone_too(tmp_path: Path) -> None:
    root = tree(tmp_path, KNOBS)
    ksm.apply(root, Settings(5000, 10))
    for name in ("ksm.found.123.part", "masks.found.123.part"):
        (tmp_path / "run/kvmsup" / name).write_text("run")
    ksm.restore(root)
    assert [path.name for path in (tmp_path / "run/kvmsup").iterdir() if path.is_file()] == ["masks.found.123.part"]


def test_the_advisor_is_off_meanwhile(tmp_path: Path) -> None:
    root = tree(tmp_path, {**KNOBS, "advisor_mode": "none [scan-time]"})
    ksm.apply(root, Settings(5000, 10))
    assert trees.read(root, "/sys/kernel/mm/ksm/advisor_mode") == "[none] scan-time"
    ksm.restore(root)
    assert trees.read(root, "/sys/kernel/mm/ksm/advisor_mode") == "none [scan-time]"


@pytest.mark.parametrize(
    ("name", "value"), [("run", "0"), ("run", "2"), ("pages_to_scan", "77"), ("sleep_millisecs", "1")]
)
def test_an_administrators_change_is_kept(name: str, value: str, tmp_path: Path) -> None:
    root = tree(tmp_path, KNOBS)
    ksm.apply(root, Settings(5000, 10))
    set_to(root, name, value)
    assert ksm.changed(root) == f"{name} = {value}"
    ksm.restore(root)
    assert knobs(root) == {**KNOBS, name: value}


def test_what_an_older_kvmsup_found_is_put_back(tmp_path: Path) -> None:
    root = tree(tmp_path, {**KNOBS, "run": "1"})
    (tmp_path / "run/kvmsup/ksm.found").write_text("0")
    ksm.restore(root)
    assert knobs(root) == KNOBS


@pytest.mark.parametrize("text", ["", "\n\n", "garbage 1 2\n", "run 0\n", "run\0x 1 2", "x", "run", "7", "run x 1"])
def test_a_broken_record_is_no_reason_to_touch_anything(text: str, tmp_path: Path) -> None:
    root = tree(tmp_path, {**KNOBS, "run": "1"})
    (tmp_path / "run/kvmsup/ksm.found").write_text(text)
    ksm.restore(root)
    assert knobs(root) == {**KNOBS, "run": "1"}
    assert not ksm.borrowed(root)


def test_one_broken_line_costs_no_other(tmp_path: Path) -> None:
    root = tree(tmp_path, {**KNOBS, "pages_to_scan": "5000"})
    (tmp_path / "run/kvmsup/ksm.found").write_text("run on 1\npages_to_scan 100 5000\nsleep_millisecs\n")
    ksm.restore(root)
    assert knobs(root) == KNOBS
    assert not ksm.borrowed(root)


@pytest.mark.parametrize(("available", "becomes"), [(900_000, "2"), (200_000, "0")])
def test_unmerging_needs_memory(available: int, becomes: str, tmp_path: Path) -> None:
    """run = 2 was found, and 50000 pages are merged: 200 MB of copies, and a tenth of all to spare."""
    root = tree(tmp_path, {**KNOBS, "run": "2", "pages_sharing": "50000"})
    ksm.apply(root, Settings(5000, 10))
    trees.write(root, "/proc/meminfo", f"MemTotal: 1000000 kB\nMemAvailable: {available} kB")
    ksm.restore(root)
    assert trees.read(root, "/sys/kernel/mm/ksm/run") == becomes


def test_it_is_not_there(tmp_path: Path) -> None:
    assert not ksm.available(str(tmp_path))
    ksm.restore(str(tmp_path))
    assert ksm.read(str(tmp_path), None) == Figures(0, 0, 0, 0, 0, 0.0)
    assert ksm.thread(str(tmp_path)) is None
    assert ksm.of_process(str(tmp_path), 1) is None


def test_what_it_has_done(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {**KNOBS, "pages_shared": "1", "pages_sharing": "2", "pages_unshared": "3", "full_scans": "5"}
    )
    trees.write(root, "/sys/kernel/mm/ksm/pages_volatile", "x")
    trees.write(root, "/proc/30/stat", trees.stat("ksmd", 0))  # no kernel thread
    trees.write(root, "/proc/100/stat", trees.stat("ksmd", 0, 0x00200040, (150, 50)))
    assert ksm.thread(root) == 100
    assert ksm.read(root, 100) == Figures(1, 2, 3, 0, 5, 200 / os.sysconf("SC_CLK_TCK"))
    trees.write(root, "/proc/7/ksm_stat", "ksm_rmap_items 9\nksm_merging_pages 3\nksm_process_profit -64")
    assert ksm.of_process(root, 7) == Merged(3 * 4096, -64)
    trees.write(root, "/proc/8/ksm_stat", "ksm_rmap_items 9")
    trees.write(root, "/proc/8/ksm_merging_pages", "4")
    assert ksm.of_process(root, 8) == Merged(4 * 4096, None)
    trees.write(root, "/proc/8/ksm_merging_pages", "")
    assert ksm.of_process(root, 8) is None


class Killed(BaseException):
    """In place of SIGKILL between two system calls."""


class Knobs(RuleBasedStateMachine):
    """kvmsup, the administrator and SIGKILL, in any order: what the administrator set last is there in the end.

    Where the administrator writes what we have just written, nobody can tell whose it is: then it is taken for ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = tree(Path(tempfile.mkdtemp()), KNOBS)
        self.meant = {name: value.partition("[")[2].partition("]")[0] or value for name, value in KNOBS.items()}
        self.kept_going = write_attribute, files.replace

    def teardown(self) -> None:
        ksm.restore(self.root)
        now = {name: ksm._value(self.root, name) for name in KNOBS}
        shutil.rmtree(self.root)
        assert now == self.meant

    def surely(self, name: str) -> str:
        return files.read(f"{self.root}/sys/kernel/mm/ksm/{name}")

    @rule(pages=st.sampled_from([100, 700, 5000]), sleep=st.sampled_from([10, 20, 200]), after=st.integers(0, 14))
    def apply(self, pages: int, sleep: int, after: int) -> None:
        self.killed_after(after, lambda: ksm.apply(self.root, Settings(pages, sleep)))

    @rule(after=st.integers(0, 14))
    def restore(self, after: int) -> None:
        self.killed_after(after, lambda: ksm.restore(self.root))

    @rule(after=st.integers(0, 4))
    def unmerge(self, after: int) -> None:
        self.killed_after(after, lambda: ksm.unmerge(self.root))

    def killed_after(self, count: int, act: object) -> None:
        left = count

        def counted(call: object) -> object:
            def write(*arguments: object) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                call(*arguments)  # type: ignore[operator]

            return write

        files.write_attribute, files.replace = map(counted, self.kept_going)  # type: ignore[assignment]
        try:
            act()  # type: ignore[operator]
        except Killed:
            pass
        finally:
            files.write_attribute, files.replace = self.kept_going

    @rule(
        name=st.sampled_from(["run", "pages_to_scan", "sleep_millisecs"]),
        value=st.sampled_from(["0", "2", "33", "77"]),
    )
    def administrator(self, name: str, value: str) -> None:
        value = value if name == "run" or len(value) > 1 else "55"
        record = ksm._read_record(self.root).get(name)
        assume(record is None or value not in record.ours)
        set_to(self.root, name, value)
        self.meant[name] = value

    @invariant()
    def what_is_not_borrowed_is_as_it_was_meant(self) -> None:
        if not ksm.borrowed(self.root):
            assert {name: ksm._value(self.root, name) for name in KNOBS} == self.meant


Knobs.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestKnobs = Knobs.TestCase


def test_a_knob_that_cannot_be_written_keeps_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, KNOBS)
    ksm.apply(root, Settings(5000, 10))
    write = files.write_attribute

    def refuse(path: str, value: str) -> None:
        if path.endswith("pages_to_scan"):
            raise HostError("no")
        write(path, value)

    monkeypatch.setattr(files, "write_attribute", refuse)
    with pytest.raises(HostError):
        ksm.restore(root)
    assert ksm.borrowed(root)
    assert knobs(root) == {**KNOBS, "pages_to_scan": "5000"}
    monkeypatch.setattr(files, "write_attribute", write_attribute)
    ksm.restore(root)
    assert knobs(root) == KNOBS


# The task


class Machine:
    """A host with guests by name, as files; the task's words are what it prints."""

    def __init__(self, root: Path, policy: str) -> None:
        self.root = tree(root, KNOBS)
        trees.write(self.root, "/etc/kvmsup.toml", f'[ksm]\npolicy = "{policy}"')
        self.shown: list[str] = []
        self.task = Merging(self.root, self.shown.append)

    def guests(self, *names: str) -> None:
        os.makedirs(f"{self.root}/run/kvmsup/claims", exist_ok=True)
        for name in claims.names(self.root):
            claims.remove(self.root, name)
        for name in names:
            claims.write(self.root, claim(name, ksm=True))
        self.task.job_finished("kvm@x.service")
        self.task.act()

    def run(self) -> str:
        return trees.read(self.root, "/sys/kernel/mm/ksm/run")


def test_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Machine(tmp_path, "always")
    host.guests()
    assert (host.run(), host.task.due()) == ("0", None)
    host.guests("a")
    assert host.run() == "1"
    assert host.task.due() is not None
    host.guests()
    assert knobs(host.root) == KNOBS
    assert host.task.due() is None
    assert host.shown == ["KSM: burst", "KSM: off"]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "<5>KSM is on for a",
        "<5>KSM is as it was found: no guest asks for it; 0 MiB saved, ksmd has used 0.0 s of CPU",
    ]


def test_the_task_leaves_alone_what_is_somebody_elses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Machine(tmp_path, "always")
    set_to(host.root, "run", "1")
    for _ in range(2):
        host.guests("a")
        assert knobs(host.root) == {**KNOBS, "run": "1"}
        assert host.task.due() is None
    set_to(host.root, "run", "0")
    host.guests("a", "b")
    assert host.run() == "1"
    set_to(host.root, "pages_to_scan", "77")
    for _ in range(2):
        host.task.act()
        assert host.task.due() is None
    host.guests("a")  # found anew
    assert trees.read(host.root, "/sys/kernel/mm/ksm/pages_to_scan") == "5000"
    host.guests()
    assert knobs(host.root) == {**KNOBS, "pages_to_scan": "77"}
    said = [line for line in capsys.readouterr().err.splitlines() if "somebody" in line]
    assert said == [
        "<5>KSM is on already, by somebody else: it is left alone until the next guest comes or goes",
        "<5>KSM: somebody else has set pages_to_scan = 77: it is left alone until the next guest comes or goes",
    ]


def test_the_task_under_pressure(tmp_path: Path) -> None:
    host = Machine(tmp_path, "pressure")
    host.guests("a")
    assert host.run() == "0"
    assert host.task.due() is not None
    trees.write(host.root, "/proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 100000 kB")
    host.task.act()
    assert host.run() == "1"


@pytest.mark.parametrize(("available", "written"), [(900_000, ["2", "0"]), (200_000, ["0"])])
def test_the_task_unmerges_for_never(
    available: int, written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Machine(tmp_path, "always")
    set_to(host.root, "pages_sharing", "50000")
    host.guests("a")
    trees.write(host.root, "/proc/meminfo", f"MemTotal: 1000000 kB\nMemAvailable: {available} kB")
    trees.write(host.root, "/etc/kvmsup.toml", '[ksm]\npolicy = "never"')
    seen, write = [], files.write_attribute

    def record(path: str, value: str) -> None:
        if path.endswith("/run"):
            seen.append(value)
        write(path, value)

    monkeypatch.setattr(files, "write_attribute", record)
    host.task.shaken("reload")
    host.task.act()
    assert seen == written
