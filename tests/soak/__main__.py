# SPDX-License-Identifier: LGPL-2.1-or-later
"""The soak. Without a part: all of them. What was run of this version of kvmsup is not run again."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tests.lab import cache
from tests.lab.errors import CommandFailed, LabError, LabPanic
from tests.lab.host import Host, Lab
from tests.lab.progress import Progress
from tests.soak import cases, crowd, faults, fuzz, guided, report, watch
from tests.soak.consistent import Facts
from tests.soak.results import Figure, Record, Results, version

REPOSITORY = Path(__file__).resolve().parents[2]
FAILURES = REPOSITORY / "build/soak-failures"
# A host is restored after so many cases, so that one has not all of the others behind it.
_BATCH = 40
# The parts that need a host.
HOSTS = ("faults", "concurrency", "hour")
# Inputs of the fuzzer that are one line of the results: a minute.
_PIECE = 10_000
# The rig's own failure: repeated on a fresh restore, at most twice, and counted.
_PANICS = 2


class Soak:
    """One run: the lab, the package in it, and where its results go."""

    def __init__(self, asked: argparse.Namespace, results: Results, deb: Path) -> None:
        self.asked = asked
        self.results = results
        self.progress = Progress()
        self._deb = deb
        self.failed = 0
        self.ran: Counter[str] = Counter()  # by part

    @contextlib.contextmanager
    def host(self, *, linux_guests: bool = True) -> Iterator[Host]:
        """A fresh host with the package."""
        lab = Lab(linux_guests=linux_guests)
        self.rig = lab.ensure_built(self.progress)
        with lab.fresh(lab.installed(self._deb)) as host:
            yield host

    def note(self, part: str, name: str, began: float, wrong: str, figures: Mapping[str, Figure]) -> None:
        """Write down what was run to its end, and show it."""
        seconds = round(time.monotonic() - began, 1)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        where = {"host": f"hosts on {self.rig.accel}, {os.cpu_count()} CPUs"} if part in HOSTS else {}
        self.results.add(Record(part, name, not wrong, seconds, at, wrong, {**figures, **where}))
        self.failed += bool(wrong)
        self.ran[part] += 1
        self.progress.stage(f"{part}: {name}: {seconds:.0f} s: {'ok' if not wrong else f'FAILED: {wrong}'}")


def run_faults(soak: Soak) -> None:
    """As many of the remaining cases as were asked for."""
    done = soak.results.done("faults", again=soak.asked.again)
    count = soak.asked.count
    more = None if count is None else count - soak.ran["faults"]  # a panic has cut this short
    chosen = [case for case in cases.drawn(soak.asked.seed) if case.part in soak.asked.only]
    longest_ago = soak.results.longest_ago("faults")
    mine = sorted(cases.share(chosen, *soak.asked.share), key=lambda case: longest_ago(case.name))
    left = cases.remaining(mine, done, more)
    soak.progress.stage(f"faults: {len(left)} cases to run, {len(done)} done before")
    while left:
        batch = sorted(left[:_BATCH], key=faults.victim)  # a case goes on with the guest of the one before
        with soak.host(linux_guests=False) as host:
            base, up = faults.prepare(host), ""
            for case in batch:
                left.remove(case)
                up = _run_fault(soak, host, base, case, up, last=case == batch[-1])
                if not up:
                    break  # what it has left is not for the next one


def _run_fault(soak: Soak, host: Host, base: Facts, case: cases.Case, up: str, *, last: bool) -> str:
    """Run one case, and see to what the `last` has left; the guest that runs now, or "" after a failure."""
    began, wrong = time.monotonic(), ""
    try:
        up = faults.run(host, base, case, up)
        if last:
            faults.over(host, base, up)
    except LabPanic:
        raise
    except (faults.Wrong, CommandFailed, LabError, AssertionError) as error:
        wrong = str(error) or repr(error)
        keep(host, case.name)
    soak.note("faults", case.name, began, wrong, {})
    return "" if wrong else up


def keep(host: Host, name: str) -> None:
    """What the host has to say about a failure, as after a failed test."""
    with contextlib.suppress(LabError, CommandFailed, OSError):
        host.collect(FAILURES / name.replace(" ", "_"))


def run_concurrency(soak: Soak) -> None:
    """The crowd for some minutes, ten if not told otherwise."""
    minutes, seed, count = soak.asked.minutes or 10.0, soak.asked.seed, soak.asked.guests
    name = f"{count} guests, {crowd.WORKERS} at a time, {minutes:g} minutes, seed {seed}"
    if name in soak.results.done("concurrency", again=soak.asked.again):
        return
    with soak.host() as host:
        base = crowd.prepare(host, count)
        began = time.monotonic()
        found, looks = crowd.run(host, base, seed, count, minutes)
        if found.wrong:
            keep(host, "concurrency")
        soak.note("concurrency", name, began, "\n".join(found.wrong), crowd.figures(found, looks))


def run_hour(soak: Soak) -> None:
    """The watch, for an hour if not told otherwise."""
    minutes = soak.asked.minutes or 60.0
    name = f"{minutes:g} minutes of nothing"
    if name in soak.results.done("hour", again=soak.asked.again):
        return
    with soak.host() as host:
        processes = watch.prepare(host)
        began = time.monotonic()
        samples = watch.run(host, processes, minutes)
        wrong = watch.grown(samples)
        if wrong:
            keep(host, "hour")
        soak.note("hour", name, began, "\n".join(wrong), watch.figures(samples, minutes))


def run_fuzz(soak: Soak) -> None:
    """Inputs that have not been tried yet, piece by piece; a million if not told otherwise."""
    done = soak.results.done("fuzz", again=soak.asked.again)
    left, first = soak.asked.count or 1_000_000, 0
    while left > 0:
        name = f"seed {soak.asked.seed}, {_PIECE} inputs from {first} on"
        if name not in done:
            began = time.monotonic()
            wrong = fuzz.run(soak.asked.seed, _PIECE, first)
            soak.note("fuzz", name, began, "\n".join(map(str, wrong)), {"inputs": _PIECE, "wrong": len(wrong)})
            left -= _PIECE
        first += _PIECE


def run_guided(soak: Soak) -> None:
    """Inputs that coverage leads to, a hundred thousand if not told otherwise; what it has found is gone on with."""
    count = soak.asked.count or 100_000
    name = f"{count} inputs, seed {soak.asked.seed}"
    if name in soak.results.done("guided", again=soak.asked.again):
        return
    began = time.monotonic()
    corpus = cache.root() / "soak/corpus"
    found, wrong = guided.run(corpus, FAILURES / "guided", soak.asked.seed, count)
    kept = sum(1 for _ in corpus.iterdir())
    figures = {"inputs": found.inputs, "branches that they came to": found.branches, "inputs kept": kept}
    soak.note("guided", name, began, wrong, figures)


PARTS: Mapping[str, Callable[[Soak], None]] = {
    "fuzz": run_fuzz,
    "guided": run_guided,
    "faults": run_faults,
    "concurrency": run_concurrency,
    "hour": run_hour,
}


def _share(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not 1 <= int(part) <= int(parts):
        raise ValueError(text)
    return int(part), int(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--count", type=int, help="fault cases, or inputs of a fuzzer, to run now")
    parser.add_argument("--minutes", type=float, help="of concurrency (default: 10), or of the hour")
    parser.add_argument("--guests", type=int, default=crowd.GUESTS, help="of concurrency (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides the order (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=cases.PARTS, choices=cases.PARTS, help="faults at these steps")
    parser.add_argument("--share", type=_share, default=(1, 1), help="K/N: the K-th of N runs of faults side by side")
    parser.add_argument("--again", action="store_true", help="run once more what failed")
    parser.add_argument("--deb", type=Path, default=os.environ.get("KVMSUP_DEB"), help="the package to test")
    parser.add_argument("--print", action="store_true", help="run nothing, print the section of docs/reliability.md")
    return parser


def _package(named: Path | None) -> Path:
    if named:
        return Path(named).absolute()
    subprocess.run(["make", "deb"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return max((REPOSITORY / "build").glob("*.deb"), key=lambda path: path.stat().st_mtime)


def _run(soak: Soak, part: str) -> None:
    """Run `part`, again after a panic; given up when three came in a row, with nothing run to its end in between."""
    panics, done = 0, soak.results.done(part)
    while panics <= _PANICS:
        try:
            return PARTS[part](soak)
        except LabPanic as error:
            now = soak.results.done(part)
            panics, done = 1 if now != done else panics + 1, now
            soak.progress.stage(f"{part}: the lab's kernel panicked: {str(error)[-300:]}")
            at = datetime.now(UTC).isoformat(timespec="seconds")
            soak.results.add(Record("panics", f"{part} {at}", True, 0.0, at))
    soak.failed += 1
    return None


def main() -> int:
    """Run, write down, and rewrite the section; 1 when anything failed."""
    parser = _parser()
    asked = parser.parse_args()
    if unknown := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}: {', '.join(PARTS)}")
    deb = _package(asked.deb)
    results = Results(version(deb))
    if asked.print:
        print(report.section(results.key, results.read()))
        return 0
    soak = Soak(asked, results, deb)
    try:
        for part in asked.parts or PARTS:
            _run(soak, part)
    finally:
        report.write(results.key, results.tidy())
    return 1 if soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
