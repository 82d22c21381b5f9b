# SPDX-License-Identifier: LGPL-2.1-or-later
"""The section of docs/reliability.md that says what was run, from the results alone; pure but for `write`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kvmsup.steps import STEPS
from tests.soak import cases
from tests.soak.results import Record

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- soak: written by python3 -m tests.soak -->", "<!-- soak: end -->"
_COLUMNS = (cases.ERROR, cases.KILL, cases.STOP, cases.PAUSE)


def section(key: str, records: Sequence[Record]) -> str:
    """Everything that was run, the last time of each; `key` is the version of the programs as they are now."""
    names = ("faults", "concurrency", "hour", "fuzz", "guided")
    parts = {part: [one for one in records if one.part == part] for part in names}
    texts = [f"The programs as they are now have the digest {key}; what was run: {_when(records)}"]
    texts += [_faults(key, parts["faults"])] if parts["faults"] else []
    for part in ("concurrency", "hour"):
        texts += [_run(key, one) for one in parts[part]]
    texts += [_fuzz(key, parts["fuzz"])] if parts["fuzz"] else []
    texts += [_run(key, one) for one in parts["guided"]]
    if panics := sum(one.part == "panics" for one in records):
        texts += [f"The lab's own kernel panicked {panics} times; what it cut short was run again on a fresh host."]
    missing = [part for part, run in parts.items() if not run]
    texts += [f"Never run: {', '.join(missing)}."] if missing else []
    return "\n\n".join(texts)


def _when(records: Sequence[Record]) -> str:
    """The days, and what the hosts ran on."""
    days = sorted({one.at.partition("T")[0] for one in records})
    hosts = sorted({str(one.figures["host"]) for one in records if "host" in one.figures})
    span = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "nothing"
    return f"{span}{'; ' if hosts else ''}{', '.join(hosts)}."


def _versions(key: str, records: Sequence[Record]) -> str:
    """With which programs."""
    now = sum(one.version == key for one in records)
    others = len({one.version for one in records} - {key})
    if now == len(records):
        return "all with the programs as they are now"
    return f"{now} with the programs as they are now, the rest with {others} version{'s' if others > 1 else ''} before"


def _faults(key: str, records: Sequence[Record]) -> str:
    """How many cases of each kind were run, and those that failed."""
    failed = [one for one in records if not one.ok]
    steps = {one.name.split()[0] for one in records}
    seconds = sum(one.seconds for one in records) / len(records)
    lines = [
        f"**Faults**: {len(records)} of {len(cases.drawn(0))} cases, at {len(steps)} of {len(STEPS)} steps,"
        f" {_versions(key, records)}; {len(failed)} failed when they were run last. {seconds:.0f} s a case.",
        "",
        f"| beside | {' | '.join(_COLUMNS)} |",
        "| :-- " + "| --: " * len(_COLUMNS) + "|",
    ]
    count = Counter((one.name.split()[2], one.name.split()[1]) for one in records)
    rows = [
        f"| {beside} | {' | '.join(str(count[beside, how]) for how in _COLUMNS)} |"
        for beside in (cases.ALONE, *cases.BESIDE)
    ]
    return "\n".join([*lines, *rows, *_failures(failed)])


def _fuzz(key: str, records: Sequence[Record]) -> str:
    """How many inputs were tried, of which seeds."""
    inputs, wrong = (sum(int(one.figures[name]) for one in records) for name in ("inputs", "wrong"))
    now = sum(int(one.figures["inputs"]) for one in records if one.version == key)
    seeds = sorted({one.name.split()[1].rstrip(",") for one in records})
    seconds = sum(one.seconds for one in records)
    return (
        f"**Fuzz**: {inputs} inputs of seed {', '.join(seeds)} in {seconds:.0f} s,"
        f" {now} of them with the programs as they are now; {wrong} went wrong."
    )


def _failures(failed: Sequence[Record]) -> list[str]:
    return ["", *(f" - failed: `{one.name}`: {_first(one.detail)}" for one in failed)] if failed else []


def _first(detail: str) -> str:
    return detail.strip().partition("\n")[0][:200]


def _run(key: str, one: Record) -> str:
    """One long run and its figures."""
    figures = [f" - {name}: {value}" for name, value in one.figures.items() if name != "host"]
    verdict = "nothing was wrong" if one.ok else "failed"
    programs = "with the programs as they are now" if one.version == key else f"with those of digest {one.version}"
    failed = _failures([] if one.ok else [one])
    head = f"**{one.part}, {one.name}**, {one.at.partition('T')[0]}, {programs}: {verdict}."
    return "\n".join([head, "", *figures, *failed])


def replaced(page: str, text: str) -> str:
    """The page with `text` between its markers. Raises ValueError where there are none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no {BEGIN} with an end")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def write(key: str, records: Sequence[Record]) -> None:
    PAGE.write_text(replaced(PAGE.read_text("utf-8"), section(key, records)), "utf-8")
