# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile configuration, for as long as it is given: python3 -m tests.soak.fuzz --seed S --count N

Each input has a number and is made from that and the seed alone: --first N --count 1 is the N-th of them again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

from kvmsup.cli import check, plan
from kvmsup.effects import outdated
from kvmsup.entry import explain, generator, request
from kvmsup.errors import ConfigError, KvmsupError
from kvmsup.model import config
from kvmsup.model.guest import Guest, Host
from kvmsup.model.topology import Topology
from kvmsup.plan import paths
from tests.soak import grammar, readback
from tests.unit import real_manager, real_systemd, trees
from tests.unit.hosts import topology as synthetic

# Of the processor's time for one input, and what stops one that goes on; most take less than a millisecond.
SECONDS, HANGS = 2.0, 10.0
TOPOLOGIES = (
    None,
    synthetic(1, 2, 1),
    synthetic(2, 4, 2, offline=(5,)),
    synthetic(4, 8, 2, isolated=range(16, 32)),
)
# Units that systemd is given together.
_AT_ONCE = 100
# One in so many is a directory of several files, which the programs read.
DIRECTORY = 100


class Failure(NamedTuple):
    """What went wrong with the input of that number."""

    seed: int
    number: int
    what: str
    content: bytes


class Hang(BaseException):
    """Not an Exception, so that no part of kvmsup can take it for one of its own."""


def run(seed: int, count: int, first: int = 0) -> list[Failure]:
    """The failures among `count` inputs from `first` on."""
    return [failure for number in range(first, first + count) for failure in one(seed, number)]


def one(seed: int, number: int) -> list[Failure]:
    """What goes wrong with one input."""
    random = Random(f"{seed}/{number}")
    if number % DIRECTORY == DIRECTORY - 1:
        return _tried(seed, number, b"", lambda: _directory(random))
    if number % 10 == 0:
        content = grammar.host(random)
        return _tried(seed, number, content, lambda: _host(content, random))
    content = grammar.guest(random)
    return _tried(seed, number, content, lambda: _guest(content, random))


def given(content: bytes) -> list[Failure]:
    """What goes wrong with `content` as a guest's file; the same every time."""
    return _tried(0, 0, content, lambda: _guest(content, Random(content)))


def _tried(seed: int, number: int, content: bytes, trial: Callable[[], None]) -> list[Failure]:
    signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    began = time.process_time()
    try:
        trial()
        signal.setitimer(signal.ITIMER_PROF, 0)
    except (Exception, Hang):
        signal.setitimer(signal.ITIMER_PROF, 0)
        return [Failure(seed, number, traceback.format_exc(), content)]
    took = time.process_time() - began
    return [Failure(seed, number, f"took {took:.1f} s", content)] if took > SECONDS else []


def _hang(_: int, __: FrameType | None) -> None:
    raise Hang


def _guest(content: bytes, random: Random) -> None:
    topology = random.choice(TOPOLOGIES)
    try:
        read = config.read_guest("web", "web.toml", content, topology)
    except ConfigError as error:
        readback.check_told(error)
        return
    for warning in read.document.diagnostics():
        readback.check_text(str(warning))
    readback.check_units(read.guest, Host(None, "never"))
    readback.check_written_down(read.guest)
    if topology:
        _place(read.guest, topology, random)


def _place(guest: Guest, topology: Topology, random: Random) -> None:
    """Beside another guest, on hosts with memory and without."""
    free = dict.fromkeys(topology.nodes, random.choice((0, 1 << 30, 1 << 40)))
    try:
        readback.check_place(guest, topology, free, random)
    except KvmsupError as error:
        readback.check_text(str(error))


def _host(content: bytes, random: Random) -> None:
    try:
        host = config.read_host("kvmsup.toml", content, random.choice(TOPOLOGIES))
    except ConfigError as error:
        readback.check_told(error)
    else:
        assert host.ksm in ("pressure", "always", "never")
        assert host.housekeeping is None or host.housekeeping


def _directory(random: Random) -> None:
    """What systemd and people run, over a directory of such files, some of which have names that are no guest's."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        trees.cpus(root, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, {0: "0,2", 1: "1,3"})
        for node in (0, 1):
            trees.write(root, f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemFree: 9999999 kB")
        directory = Path(f"{root}/etc/kvmsup")
        directory.mkdir(parents=True)
        Path(f"{root}/etc/kvmsup.toml").write_bytes(grammar.host(random) if random.random() < 0.5 else b"")
        names = random.sample(("web", "db", "a\x1b[2J", "b\udc9b", "No", "x" * 40, "c d", "%n", "-"), 4)
        for name in names:
            (directory / f"{name}.toml").write_bytes(grammar.guest(random))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            for told in _read(root, names):
                said.write(f"{told}\n")
        readback.check_text(said.getvalue())


def _read(root: str, names: list[str]) -> Iterator[str]:
    """What each program has to say."""
    assert generator.main([f"{root}/out"], root) in (0, 1)
    yield from map(str, check.findings([], root))
    asked = argparse.Namespace(guest="", root=root, json=False)
    try:
        plan.run(asked)
    except KvmsupError as error:
        yield str(error)
    for name in names:
        yield str(explain.reason(name, root)) if name.isascii() and name.isprintable() else ""
        outdated.configured(root, name)
        try:
            request.requested(name, root)
        except KvmsupError as error:
            yield str(error)


class Sound(NamedTuple):
    """A guest that can be started, and where it is from."""

    number: int
    content: bytes
    guest: Guest


def through_systemd(seed: int, count: int) -> list[Failure]:
    """`count` sound guests through systemd's own parser: it must find the very words that were meant.

    The test that calls it, or the next, is skipped where there is no systemd to ask.
    """
    return [failure for batch in _batches(seed, count) for failure in _loaded(seed, batch)]


def started_by_systemd(seed: int, count: int) -> list[Failure]:
    """`count` sound guests, started by a running systemd: the kernel must have the very argv that was meant."""
    return [failure for batch in _batches(seed, count) for failure in _started(seed, batch)]


def _batches(seed: int, count: int) -> Iterator[dict[str, Sound]]:
    """The first `count` sound guests of `seed` by the name of a unit, some at a time."""
    sound = _sound(seed)
    for at in range(0, count, _AT_ONCE):
        batch = itertools.islice(sound, min(_AT_ONCE, count - at))
        yield {f"g{one.number}.service": one for one in batch}


def _sound(seed: int) -> Iterator[Sound]:
    for number in itertools.count():
        content = grammar.guest(Random(f"{seed}/{number}"))
        with contextlib.suppress(ConfigError):
            yield Sound(number, content, config.read_guest("web", "web.toml", content).guest)


def _loaded(seed: int, batch: dict[str, Sound]) -> list[Failure]:
    wants = "".join(f"Wants={name}\n" for name in batch)
    files = {"all.target": f"[Unit]\nDefaultDependencies=no\n{wants}", **_units(batch)}
    dump = real_systemd.load(files, "all.target")
    return _read_back(seed, batch, lambda name, guest: readback.check_loaded(guest, name, dump))


def _started(seed: int, batch: dict[str, Sound]) -> list[Failure]:
    started = real_manager.start(_units(batch), paths.BINARY, readback.value)
    return _read_back(seed, batch, lambda name, guest: readback.check_started(guest, started[name]))


def _units(batch: dict[str, Sound]) -> dict[str, str]:
    return {name: readback.unit(one.guest) for name, one in batch.items()}


def _read_back(seed: int, batch: dict[str, Sound], check: Callable[[str, Guest], None]) -> list[Failure]:
    """The failures of `check` with each guest and the name of its unit."""
    return [
        failure
        for name, (number, content, guest) in batch.items()
        for failure in _tried(seed, number, content, partial(check, name, guest))
    ]


def main() -> int:
    """Run and tell; 1 when anything failed."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in this process")
    parser.add_argument("--first", type=int, default=0, help="the number of the first of them")
    parser.add_argument("--systemd", type=int, default=0, metavar="N", help="guests through systemd's own parser")
    parser.add_argument("--started", type=int, default=0, metavar="N", help="guests started by a running systemd")
    asked = parser.parse_args()
    began, failures = time.monotonic(), list[Failure]()
    for what, count, through in (
        ("through systemd", asked.systemd, through_systemd),
        ("started by systemd", asked.started, started_by_systemd),
    ):
        if count:
            failures += through(asked.seed, count)
            print(f"{count} guests of seed {asked.seed} {what}: {len(failures)} failures", flush=True)
    for start in range(asked.first, asked.first + asked.count, 10_000):
        count = min(10_000, asked.first + asked.count - start)
        failures += run(asked.seed, count, start)
        took = time.monotonic() - began
        print(f"seed {asked.seed}, up to {start + count}: {len(failures)} failures, {took:.0f} s", flush=True)
    for failure in failures[:20]:
        print(f"\nseed {failure.seed}, number {failure.number}: {failure.what}\n{failure.content!r}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
