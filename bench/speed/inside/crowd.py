# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many guests: started one after another and all at once; what is resident and awake meanwhile.

python3 -m bench.speed.inside.crowd ROUNDS SECONDS COUNT...
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cli.run import VIRSH, run
from bench.speed.inside.guests import ETC, Shape, check, cpus, define, forget, in_turn
from bench.speed.inside.peers import Bare, Kvmsup, Libvirt, Peer, argv, cpu_seconds

Json = dict[str, Any]
_SCANNED = Path("/sys/kernel/mm/ksm/pages_scanned")
HOST_FILE = Path("/etc/kvmsup.toml")
# After a start: firmware runs until it halts, and the supervisor looks at threads that came late after a second.
_SETTLE_SECONDS = 0.5
_CALM_SECONDS = 5.0
# libvirtd ends when nobody has asked it for 120 s, as Debian has it.
_LIBVIRT_GONE_SECONDS = 135.0
_KSM_SECONDS = 60.0


def measure(counts: Sequence[int], rounds: int, seconds: float) -> Json:
    """`starts` by count and peer; `resident` by count; `ksm`, of the most; `nothing`, after them."""
    crowds, every = defined(max(counts))
    found: Json = {"starts": {}, "resident": {}}
    for count in counts:
        names = every[:count]
        found["starts"][str(count)] = starts(crowds, names, rounds)
        found["resident"][str(count)] = {who: resident(crowds[who], names, seconds) for who in ("kvmsup", "libvirt")}
    found["ksm"] = with_ksm(crowds["kvmsup"], every, seconds)
    forget(every)
    found["nothing"] = nothing(seconds)
    return found


def defined(count: int) -> tuple[dict[str, Crowd], list[str]]:
    """So many guests, known to all: each peer's crowd, and their names."""
    # Emulated: a KVM that is software itself needs minutes of CPU time for the firmware of fifty guests.
    shapes = {
        f"crowd-{number}": Shape(64, {0: one}, accel="tcg")
        for number, one in zip(range(count), _turns(), strict=False)
    }
    define(shapes)
    kvmsup = Kvmsup()
    line, first = argv(kvmsup, "crowd-0"), re.compile(r"\bcrowd-0\b")
    lines = {name: [first.sub(name, word) for word in line] for name in shapes}
    return {
        "kvmsup": Crowd(kvmsup, shapes),
        "libvirt": Crowd(Libvirt(), shapes),
        "bare": Crowd(Bare(shapes, lines), shapes),
    }, list(shapes)


def _turns() -> Iterator[int]:
    while True:
        yield from cpus()


class Crowd:
    """One peer's guests, together."""

    def __init__(self, peer: Peer, shapes: Mapping[str, Shape]) -> None:
        self.peer = peer
        self._shapes = shapes

    def start(self, names: Sequence[str]) -> None:
        """All at once; each runs, and is pinned, when this returns."""
        if isinstance(self.peer, Kvmsup):
            run("systemctl", "start", *(f"kvm@{name}" for name in names))
        elif isinstance(self.peer, Libvirt):
            _together([(*VIRSH, "start", name) for name in names])
        else:
            _each(self.peer.start, names)

    def end(self, names: Sequence[str]) -> None:
        """All at once, as a power cut does."""
        if isinstance(self.peer, Kvmsup):
            units = [f"kvm@{name}" for name in names]
            run("systemctl", "kill", "--signal=KILL", *units)
            run("systemctl", "stop", *units, *(f"kvm-setup@{name}" for name in names))
        elif isinstance(self.peer, Libvirt):
            _together([(*VIRSH, "destroy", name) for name in names])
        else:
            _each(self.peer.end, names)

    def check(self, names: Sequence[str]) -> None:
        """Raises RuntimeError when a vCPU is not where it is wanted."""
        for name in names:
            check(self.peer.pid(name), self._shapes[name])

    def used(self, names: Sequence[str]) -> float:
        """Seconds of CPU time so far: the container's, ours with our commands', that of the QEMUs that are ours."""
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        bare = [process_seconds(self.peer.pid(name)) for name in names] if isinstance(self.peer, Bare) else []
        return cpu_seconds() + sum(one.ru_utime + one.ru_stime for one in ours) + sum(bare)


def _together(commands: Sequence[Sequence[str]]) -> None:
    """Run all of them at the same time. Raises RuntimeError with the words of one that fails."""
    pipe = subprocess.PIPE
    began = [
        subprocess.Popen(one, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT) for one in commands
    ]
    told = [process.communicate()[0].decode() for process in began]
    for process, text in zip(began, told, strict=True):
        if process.returncode:
            raise RuntimeError(f"{process.args!r}: {text}")


def _each(do: Callable[[str], None], names: Sequence[str]) -> None:
    """`do` each of them in a thread of its own. Raises RuntimeError when one failed."""
    failed: list[Exception] = []

    def one(name: str) -> None:
        try:
            do(name)
        except Exception as error:  # told by the thread that waits
            failed.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(names)} failed: {failed[0]!r}")


def process_seconds(pid: int) -> float:
    """CPU time of all threads that process `pid` has and had, to the nanosecond.

    /proc/PID/stat counts ticks of 10 ms, and half a minute of an idle daemon is less than one. The clock's number is
    from linux/posix-timers.h: CPUCLOCK_SCHED of a process.
    """
    return time.clock_gettime(~pid << 3 | 2)


def starts(crowds: Mapping[str, Crowd], names: Sequence[str], rounds: int) -> dict[str, list[Json]]:
    """By peer, each round's figures, in milliseconds."""
    found: dict[str, list[Json]] = {who: [] for who in crowds}
    for turn in range(rounds):
        for who in in_turn(crowds, turn):
            found[who].append({"one by one": one_by_one(crowds[who], names), "at once": at_once(crowds[who], names)})
    return found


def one_by_one(crowd: Crowd, names: Sequence[str]) -> Json:
    """`each` guest's start, and `total`, until all run; CPU time of all that takes part; until all have been ended."""
    time.sleep(_SETTLE_SECONDS)
    each, used, began = [], crowd.used(()), time.perf_counter()
    for name in names:
        before = time.perf_counter()
        crowd.peer.start(name)
        each.append(1000 * (time.perf_counter() - before))
    return {"total": 1000 * (time.perf_counter() - began), "each": each} | _rest(crowd, names, used)


def at_once(crowd: Crowd, names: Sequence[str]) -> Json:
    """`total`, until all run; CPU time of all that takes part; until all have been ended at once."""
    time.sleep(_SETTLE_SECONDS)
    used, began = crowd.used(()), time.perf_counter()
    crowd.start(names)
    return {"total": 1000 * (time.perf_counter() - began)} | _rest(crowd, names, used)


def _rest(crowd: Crowd, names: Sequence[str], used: float) -> Json:
    time.sleep(_SETTLE_SECONDS)
    cpu = 1000 * (crowd.used(names) - used)
    crowd.check(names)
    began = time.perf_counter()
    crowd.end(names)
    return {"cpu": cpu, "end": 1000 * (time.perf_counter() - began)}


@contextlib.contextmanager
def running(crowds: Sequence[Crowd], names: Sequence[str]) -> Iterator[None]:
    for crowd in crowds:
        crowd.start(names)
    try:
        time.sleep(_CALM_SECONDS)
        yield
    finally:
        for crowd in crowds:
            crowd.end(names)


def resident(crowd: Crowd, names: Sequence[str], seconds: float) -> Json:
    """What is there for `names` while they run, in daemons that are as young as the guests, and how idle that is."""
    daemons, which = ("kvmsup", kvmsup_daemons) if isinstance(crowd.peer, Kvmsup) else ("libvirtd", libvirt_daemons)
    run("systemctl", "restart", daemons)
    with running([crowd], names):
        return {"memory": memory(which()), "idle": idle(which(), seconds)}


def kvmsup_daemons() -> dict[int, str]:
    """By pid, all that runs below kvmsup's directory of programs, whichever unit it is of; QEMU is the guest."""
    return {pid: Path(word).name for pid, words in commands().items() for word in words if "/kvmsup/kvmsup-" in word}


def libvirt_daemons() -> dict[int, str]:
    """By pid. machined is there because libvirt registers its guests with it."""
    names = {pid: Path(words[0]).name for pid, words in commands().items()}
    return {pid: name for pid, name in names.items() if name.startswith(("libvirt", "virt", "systemd-machined"))}


def commands() -> dict[int, list[str]]:
    """Command lines by pid, of all processes that have one."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if words := (entry / "cmdline").read_text(errors="replace").split("\0")[:-1]:
                found[int(entry.name)] = words
    return found


def memory(daemons: Mapping[int, str]) -> list[Json]:
    """Of each, in KiB: its share of what it maps, and all of that.

    The bench is a Python of the same file as kvmsup's, whose program text counts half in `pss` for that.
    """
    found = []
    for pid, name in daemons.items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found.append({"name": name, "pss": _field(rollup, "Pss"), "rss": _field(rollup, "Rss")})
    return found


def idle(daemons: Mapping[int, str], seconds: float) -> list[Json]:
    """Of each, how often it waited for something (so it had been woken) and its CPU time, while nobody asks."""
    before = {pid: (_switches(pid), process_seconds(pid)) for pid in daemons}
    time.sleep(seconds)
    found = []
    for pid, name in daemons.items():
        waits, used = _switches(pid) - before[pid][0], process_seconds(pid) - before[pid][1]
        found.append({"name": name, "seconds": seconds, "waits": waits, "cpu an hour": used / seconds * 3600})
    return found


def _switches(pid: int) -> int:
    """Voluntary context switches of all of its threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(_field(task.read_text(), "voluntary_ctxt_switches") for task in tasks)


def _field(text: str, name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    assert match is not None, name
    return int(match[1])


def with_ksm(crowd: Crowd, names: Sequence[str], seconds: float) -> Json:
    """As `resident` while KSM merges these guests' memory, once its burst is over; and the pages that ksmd looked at.

    A container does not see the kernel's threads: `span`, of CLOCK_MONOTONIC, is for who samples ksmd outside.
    """
    texts = {name: (ETC / f"{name}.toml").read_text() for name in names}
    HOST_FILE.write_text('[ksm]\npolicy = "always"\n')
    for name, text in texts.items():
        (ETC / f"{name}.toml").write_text(text + "ksm = true\n")  # [memory] is the last table
    run("systemctl", "daemon-reload")
    try:
        run("systemctl", "restart", "kvmsup")
        with running([crowd], names):
            phase = _after_burst()
            daemons = kvmsup_daemons()
            scanned, began = int(_SCANNED.read_text()), time.monotonic()
            found = {"phase": phase, "memory": memory(daemons), "idle": idle(daemons, seconds)}
            return found | {"span": [began, time.monotonic()], "scanned": int(_SCANNED.read_text()) - scanned}
    finally:
        HOST_FILE.unlink()
        for name, text in texts.items():
            (ETC / f"{name}.toml").write_text(text)
        run("systemctl", "daemon-reload")


def _after_burst() -> str:
    """What the supervisor says that KSM does, once it is not a burst any more or after a minute."""
    until = time.monotonic() + _KSM_SECONDS
    while (
        "burst" in (phase := run("systemctl", "show", "-P", "StatusText", "kvmsup").strip())
        and time.monotonic() < until
    ):
        time.sleep(0.5)
    return phase


def nothing(seconds: float) -> Json:
    """No guest runs: what is there just after the last one, and when libvirtd has had the time to go."""
    run("systemctl", "stop", "bench")  # which has kept the supervisor
    time.sleep(_CALM_SECONDS)
    found: Json = {}
    for when, wait in (("soon", 0.0), ("later", _LIBVIRT_GONE_SECONDS)):
        time.sleep(wait)
        both = {"kvmsup": kvmsup_daemons(), "libvirt": libvirt_daemons()}
        found[when] = {who: memory(daemons) for who, daemons in both.items()}
    found["idle"] = {who: idle(daemons, seconds) for who, daemons in both.items()}
    return found


if __name__ == "__main__":
    json.dump(measure([int(word) for word in sys.argv[3:]], int(sys.argv[1]), float(sys.argv[2])), sys.stdout)
