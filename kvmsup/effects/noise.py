# SPDX-License-Identifier: LGPL-2.1-or-later
"""How quiet a guest's isolated CPUs are: a loop that looks at the clock there, and the gaps in what it sees."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress

from kvmsup.effects import kernel, partition, pin, proc
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model.claim import Claim
from kvmsup.records import NamedTuple


class Noise(NamedTuple):
    """What a loop on `cpu` that did nothing but look at the clock met in `seconds`.

    `gaps` are the moments of more than `least` nanoseconds in which it did not run; `lost` is their sum and `longest`
    the longest of them, in nanoseconds. `guest` is what of the time the guest's own vCPU ran, which is among them.
    """

    cpu: int
    seconds: float
    least: int
    gaps: int
    longest: int
    lost: int
    guest: int


# A loop in Python comes round in less than a microsecond; an interrupt takes a few of them.
_LEAST_NANOSECONDS = 5_000


def listen(root: str, claim: Claim, vcpus: Mapping[int, int], seconds: float) -> list[Noise]:
    """Run such a loop on each isolated CPU at once; `vcpus` are the threads by CPU. Raises HostError."""
    if not kernel.has_partitions():
        raise HostError("on this kernel nobody can get to the isolated CPUs to listen there", "Linux 6.7 or newer")
    left = dict(_begin(root, claim, cpu, vcpus.get(cpu, 0), seconds) for cpu in sorted(claim.isolated))
    try:
        return [_end(pid, left.pop(pid)) for pid in list(left)]
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _begin(root: str, claim: Claim, cpu: int, vcpu: int, seconds: float) -> tuple[int, int]:
    """A process of its own for one CPU, and the pipe that tells what came of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    with suppress(BaseException):
        _end_with_parent()
        try:
            told = json.dumps(_listen(root, claim, cpu, vcpu, seconds))
        except KvmsupError as error:
            told = json.dumps(error.what)
        os.write(writing, told.encode())
    os._exit(0)


def _end_with_parent() -> None:
    """Whatever ends who has asked, nobody listens any longer (PR_SET_PDEATHSIG(2const))."""
    import ctypes

    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))


def _end(pid: int, reading: int) -> Noise:
    with open(reading, encoding="utf-8") as told:
        text = told.read()
    os.waitpid(pid, 0)
    found = json.loads(text) if text else "the loop was killed, as everything in a unit is that stops"
    if isinstance(found, str):
        raise HostError(found)
    return Noise(*found)


def _listen(root: str, claim: Claim, cpu: int, vcpu: int, seconds: float) -> Noise:
    """Where the vCPUs are, since nobody else may run on these CPUs."""
    partition.visit(root, claim, os.getpid())
    pin.pin(0, frozenset((cpu,)))
    gc.disable()
    clock, least = time.perf_counter_ns, _LEAST_NANOSECONDS
    ran = proc.ran(f"{root}/proc/{vcpu}")
    gaps = longest = lost = 0
    last = clock()
    end = last + int(seconds * 1e9)
    while last < end:
        now = clock()
        if (gap := now - last) > least:
            gaps, lost, longest = gaps + 1, lost + gap, max(gap, longest)
        last = now
    return Noise(cpu, seconds, least, gaps, longest, lost, proc.ran(f"{root}/proc/{vcpu}") - ran)
