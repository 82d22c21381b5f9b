# SPDX-License-Identifier: LGPL-2.1-or-later
"""/sys/kernel/mm/ksm, host-global and so only borrowed (Documentation/admin-guide/mm/ksm.rst).

What was found is written down before anything is changed, with what we write, and is put back only while our own value
is still there: an administrator's change in between is kept, knob by knob.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from kvmsup.effects import cgroup, files, pressure, proc
from kvmsup.effects.claims import RUN
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.model.ksm import PAGE, Figures, Merged, Settings
from kvmsup.records import NamedTuple

_OFF, _ON, _UNMERGE = "0", "1", "2"
_CHOICES = {"run": (_OFF, _ON, _UNMERGE), "advisor_mode": ("none", "scan-time")}
_NUMBERS = ("pages_to_scan", "sleep_millisecs")


class _Knob(NamedTuple):
    found: str
    ours: tuple[str, ...]  # what we wrote last; before that is done, what was there of ours and what is to come


def _path(root: str, name: str) -> str:
    return f"{root}/sys/kernel/mm/ksm/{name}"


def _record(root: str) -> str:
    return f"{root}{RUN}/ksm.found"


def available(root: str) -> bool:
    """Whether this kernel has KSM."""
    return os.path.exists(_path(root, "run"))


def running(root: str) -> bool:
    """Whether the kernel merges at this moment, whoever wants it to."""
    return _value(root, "run") == _ON


def borrowed(root: str) -> bool:
    """Whether any of it is ours to put back."""
    return os.path.exists(_record(root))


def changed(root: str) -> str:
    """What somebody else has made of our settings, such as "pages_to_scan = 77"; "" while they stand."""
    for name, knob in _read_record(root).items():
        now = _value(root, name)
        if now is not None and now not in knob.ours:
            return f"{name} = {now}"
    return ""


def apply(root: str, settings: Settings) -> None:
    """Have ksmd work as `settings` say, remembering what was found. Raises HostError."""
    # While the kernel's advisor is on, pages_to_scan cannot be written (mm/ksm.c, pages_to_scan_store).
    wanted = {"advisor_mode": "none", "pages_to_scan": settings.pages, "sleep_millisecs": settings.sleep, "run": _ON}
    _write(root, {name: str(value) for name, value in wanted.items()})


def unmerge(root: str) -> None:
    """Give every merged page its own memory again, and stop. The kernel does it within this call. Raises HostError."""
    _write(root, {"run": _UNMERGE})


def _write(root: str, wanted: Mapping[str, str]) -> None:
    record = _read_record(root)
    for name, value in wanted.items():
        now = _value(root, name)
        if now is None or now == value:  # an older kernel's, or nothing to do
            continue
        before = record.get(name, _Knob(now, ()))
        if now not in before.ours:
            before = _Knob(now, ())  # somebody else's, and so what is found
        _keep_record(root, record | {name: _Knob(before.found, (*before.ours[-1:], value))})
        files.write_attribute(_path(root, name), value)
        record[name] = _Knob(before.found, (value,))
        _keep_record(root, record)


def restore(root: str) -> None:
    """Put back what was found, each knob unless somebody else has changed it since. Raises HostError.

    Where run = 2 was found, and the memory for the copies is not there, merging only stops.
    """
    record = _read_record(root)
    failed = None
    # Merging stops before its pace changes, and the advisor comes last: it sets the pace.
    for name in sorted(record, key=("run", "pages_to_scan", "sleep_millisecs", "advisor_mode").index):
        found, ours = record[name]
        try:
            if (now := _value(root, name)) in ours and now != found:
                stop = name == "run" and found == _UNMERGE and not _room(root)
                files.write_attribute(_path(root, name), _OFF if stop else found)
        except HostError as error:
            failed = error
    if failed:
        raise failed
    files.sweep_parts(f"{root}{RUN}", "ksm.found")  # of a supervisor that was killed
    files.remove(_record(root))


def _room(root: str) -> bool:
    from kvmsup.plan.ksm import can_unmerge  # who only looks has no need of it

    return can_unmerge(read(root, None), pressure.read(root))


def _value(root: str, name: str) -> str | None:
    """A knob's value; of the advisor the mode in brackets. None where this kernel has no such knob."""
    try:
        text = files.read(_path(root, name))
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] if "[" in text else text


def _read_record(root: str) -> dict[str, _Knob]:
    """What was found and what we wrote, by knob. A line that makes no sense is left out: nobody else writes it.

    What the kernel would not take back is one of those: it would be refused again and again, and all else with it.
    """
    lines = files.words(_record(root))
    if len(lines) == 1 and len(lines[0]) == 1:  # by kvmsup 0.1.0's first days: run's value alone
        lines = [["run", *lines[0], _ON]]
    return {
        name: _Knob(found, tuple(ours))
        for name, found, *ours in filter(lambda words: len(words) > 2, lines)
        if _is_taken(name, found)
    }


def _is_taken(name: str, value: str) -> bool:
    if name in _CHOICES:
        return value in _CHOICES[name]
    return name in _NUMBERS and value.isascii() and value.isdecimal()


def _keep_record(root: str, record: Mapping[str, _Knob]) -> None:
    files.replace(
        _record(root), "".join(f"{' '.join((name, one.found, *one.ours))}\n" for name, one in record.items())
    )


def thread(root: str) -> int | None:
    """The pid of ksmd; None where it cannot be seen. Kernel threads are born early, so it is found early."""
    try:
        pids = sorted(int(name) for name in os.listdir(f"{root}/proc") if name.isdecimal())
    except OSError:
        return None
    return next((pid for pid in pids if _is_ksmd(proc.stat(f"{root}/proc/{pid}"))), None)


def _is_ksmd(stat: proc.Stat | None) -> bool:
    return stat is not None and stat.kernel and stat.name == "ksmd"


def read(root: str, ksmd: int | None) -> Figures:
    """What KSM has done so far; `ksmd` is its thread, for the CPU time."""
    names = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "full_scans")
    stat = proc.stat(f"{root}/proc/{ksmd}") if ksmd else None
    shared, sharing, unshared, volatile, scans = (_number(_path(root, name)) for name in names)
    return Figures(shared, sharing, unshared, volatile, scans, stat.cpu_seconds if stat else 0.0)


def resident(root: str, claims: Iterable[Claim]) -> int:
    """Pages of anonymous memory that the QEMUs of `claims` have: what KSM may look at is among them."""
    pids = [pid for claim in claims for pid in cgroup.processes(root, claim)]
    return sum(proc.of_process(root, pid).get("RssAnon", 0) // PAGE for pid in pids)


def of_process(root: str, pid: int) -> Merged | None:
    """What of process `pid` is merged; None where the kernel does not tell."""
    told = _numbers(f"{root}/proc/{pid}/ksm_stat")
    pages = told.get("ksm_merging_pages")
    if pages is None:  # Linux < 6.4
        try:
            pages = int(files.read(f"{root}/proc/{pid}/ksm_merging_pages"))
        except (OSError, ValueError):
            return None
    return Merged(pages * PAGE, told.get("ksm_process_profit"))


def _number(path: str) -> int:
    try:
        return int(files.read(path))
    except (OSError, ValueError):
        return 0


def _numbers(path: str) -> dict[str, int]:
    """The numbers behind the names in the lines of the file at `path`; none when the process is gone."""
    try:
        lines = [line.split() for line in files.read(path).splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].lstrip("-").isdecimal()}
