# SPDX-License-Identifier: LGPL-2.1-or-later
"""Masks of CPUs that the kernel goes by: interrupts, receive packet steering, the lockup detector, its own threads.

They are the host's and so only borrowed: what was found is written down before anything is changed, and is put back
mask by mask, unless somebody else has changed it since. Callers hold the claims' lock.
Documentation/core-api/irq/irq-affinity.rst, networking/scaling.rst, admin-guide/sysctl/kernel.rst (watchdog_cpumask).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping

from kvmsup import cpulist
from kvmsup.effects import files, interrupts, kernel, pin, proc, sysfs
from kvmsup.effects.claims import RUN
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.plan import affinities
from kvmsup.plan.affinities import DEFAULT, IRQ, LOOKED, THREAD, WORKER, Borrowed
from kvmsup.records import NamedTuple

_STEERING = "rps/"


class Stuck(NamedTuple):
    """An interrupt that the kernel does not let anybody move, such as one of a queue for each CPU."""

    irq: int
    name: str


def _record(root: str) -> str:
    return f"{root}{RUN}/masks.found"


def settle(root: str, claims: Collection[Claim]) -> list[str]:
    """Keep these masks off the CPUs that guests of `claims` have isolated, or put them back.

    Returns what was moved, in words. Raises HostError.
    """
    isolated = frozenset[int]().union(*(claim.isolated for claim in claims))
    if not isolated and not os.path.exists(_record(root)):
        return []
    record = _read(root)
    links = _sees_links(root)
    unseen = {} if links else {key: one for key, one in record.items() if key.startswith(_STEERING)}
    masks = {key: path for key, path in _masks(root) if links or not key.startswith(_STEERING)}
    now = {key: found for key, path in masks.items() if (found := _value(path)) is not None}
    others = _others(root, isolated) if isolated else frozenset()
    step = affinities.step(now | _threads(root, record), record, isolated, others, sysfs.possible(root))
    _keep(root, step.before | unseen)
    failed = frozenset(key for key, cpus in step.write.items() if not _write(key, masks.get(key, ""), cpus))
    _keep(root, step.done(failed, record) | unseen)
    names = dict(_names(root))
    return [told for key in step.write if key not in failed and (told := _told(key, names))]


def _sees_links(root: str) -> bool:
    """Whether the host's interfaces are to be seen from here: the supervisor has a network of its own."""
    here, there = (f"{root}/proc/{who}/ns/net" for who in ("self", "1"))
    try:
        return os.stat(here).st_ino == os.stat(there).st_ino
    except OSError:
        return True


def _told(key: str, names: Mapping[int, str]) -> str:
    """What a mask is of, for people; "" for an interrupt that nobody uses."""
    if key.startswith(IRQ):
        number = int(key.removeprefix(IRQ))
        return f"{names[number]} ({number})" if number in names else ""
    if key.startswith(_STEERING):
        return f"packets of {key.removeprefix(_STEERING).replace('/', ' ')}"
    return {DEFAULT: "new interrupts", "watchdog": "the lockup detector", "workqueues": "workqueues"}.get(key, "")


def _others(root: str, isolated: frozenset[int]) -> frozenset[int]:
    """Where that goes which has nowhere else to go: housekeeping CPUs, as far as they are the host's."""
    from kvmsup.effects import configs  # nobody else here has need of the host's file
    from kvmsup.errors import ConfigError
    from kvmsup.model import config
    from kvmsup.model.guest import Host
    from kvmsup.plan import scene

    try:
        host = config.read_host(configs.HOST_FILE, configs.read_host(root))
    except ConfigError:
        host = Host(None, "never")
    topology = sysfs.topology(root)
    return scene.housekeeping_of(host, topology) - isolated or topology.online - isolated


def _masks(root: str) -> Iterator[tuple[str, str]]:
    """The path of each mask, by its key."""
    yield DEFAULT, f"{root}/proc/irq/default_smp_affinity"
    yield "watchdog", f"{root}/proc/sys/kernel/watchdog_cpumask"
    if not kernel.has_partitions():  # else the kernel does that
        yield "workqueues", f"{root}/sys/devices/virtual/workqueue/cpumask"
    for number in sorted(map(int, filter(str.isdecimal, _listed(f"{root}/proc/irq")))):
        yield f"{IRQ}{number}", f"{root}/proc/irq/{number}/smp_affinity_list"
    for link in _listed(f"{root}/sys/class/net"):
        for queue in _listed(f"{root}/sys/class/net/{link}/queues"):
            if queue.startswith("rx-"):
                yield f"{_STEERING}{link}/{queue}", f"{root}/sys/class/net/{link}/queues/{queue}/rps_cpus"


def _threads(root: str, record: Mapping[str, Borrowed]) -> dict[str, frozenset[int]]:
    """The masks of the kernel's own threads that can be moved, by keys that tell who has the number later.

    Where partitions move them, only those that are in the record once they have been looked at.
    """
    kind = THREAD if kernel.has_partitions() else WORKER
    if kind == THREAD and LOOKED in record:
        pids = [key.split("/")[1] for key in record if key.startswith(THREAD) and key != LOOKED]
    else:
        pids = list(filter(str.isdecimal, _listed(f"{root}/proc")))
    found = {}
    for pid in pids:
        thread = proc.stat(f"{root}/proc/{pid}")
        movable = thread and thread.kernel and not thread.bound and len(thread.name.split()) == 1
        if thread and movable and (cpus := proc.allowed(f"{root}/proc/{pid}")):
            found[f"{kind}{pid}/{thread.name}"] = cpus
    return found


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _is_mask(path: str) -> bool:
    """Whether the file has hexadecimal groups of 32 CPUs, the highest first, instead of a list."""
    return path.endswith(("default_smp_affinity", "rps_cpus", "workqueue/cpumask"))


def _value(path: str) -> frozenset[int] | None:
    """None where there is no such file, or it has no mask."""
    try:
        text = files.read(path).strip()
        if not _is_mask(path):
            return cpulist.parse(text)
        bits = int(text.replace(",", ""), 16)
    except (OSError, ValueError):
        return None
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def _write(key: str, path: str, cpus: frozenset[int]) -> bool:
    """Whether the kernel took it."""
    try:
        if key.startswith((THREAD, WORKER)):
            pin.pin(int(key.split("/")[1]), cpus)
            return True
        files.write_attribute(path, _hexadecimal(cpus) if _is_mask(path) else cpulist.render(cpus))
    except HostError:
        return False
    return True


def _hexadecimal(cpus: frozenset[int]) -> str:
    digits = f"{sum(1 << number for number in cpus):x}"
    digits = digits.rjust(-(-len(digits) // 8) * 8, "0")
    return ",".join(digits[place : place + 8] for place in range(0, len(digits), 8))


def stuck(root: str, cpus: frozenset[int]) -> list[Stuck]:
    """The interrupts that may come to `cpus`, which are isolated, since they cannot be moved; the timer is none.

    By the mask that was asked for: where an interrupt goes (effective_affinity_list) changes with the next one of it.
    """
    record, names = _read(root), dict(_names(root))
    found = [int(key.removeprefix(IRQ)) for key in _coming(root, cpus) if key.startswith(IRQ) and key not in record]
    return sorted(Stuck(number, names[number]) for number in found if names.get(number, "timer") != "timer")


def astray(root: str, cpus: frozenset[int]) -> list[str]:
    """What we had moved off `cpus`, and may come there again since somebody else has changed it; in words."""
    record, names = _read(root), dict(_names(root))
    return [told for key in _coming(root, cpus) if key in record and (told := _told(key, names))]


def _coming(root: str, cpus: frozenset[int]) -> Iterator[str]:
    """The keys of the masks with some of `cpus`."""
    yield from (key for key, path in _masks(root) if (_value(path) or frozenset()) & cpus)


def _names(root: str) -> Iterator[tuple[int, str]]:
    """What each interrupt is called by its drivers; none is at one that nobody uses."""
    yield from ((int(row.label), row.device) for row in interrupts.rows(f"{root}/proc/interrupts") if row.device)


def _read(root: str) -> dict[str, Borrowed]:
    """A line that makes no sense is left out: nobody else writes it."""
    found = {}
    for line in files.words(_record(root)):
        with contextlib.suppress(ValueError):
            key, was, *ours = line
            if ours:
                found[key] = Borrowed(cpulist.parse(was), tuple(map(cpulist.parse, ours)))
    return found


def _keep(root: str, record: Mapping[str, Borrowed]) -> None:
    lines = (" ".join((key, cpulist.render(one.found), *map(cpulist.render, one.ours))) for key, one in record.items())
    text = "".join(f"{line}\n" for line in lines)
    # A release needs no room: it writes what is about to be put back.
    files.rewrite(_record(root), text) if text else files.remove(_record(root))
