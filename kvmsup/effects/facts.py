# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything about a host that decides whether guests run well on it. Nothing is changed, and little needs root."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from kvmsup.effects import (
    cgroup,
    claims,
    configs,
    hugepages,
    intrusions,
    kvmfacts,
    masks,
    partition,
    proc,
    sysfs,
)
from kvmsup.effects.kvmfacts import listed, text
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model import config
from kvmsup.model.claim import Claim
from kvmsup.model.hostfacts import Cpus, Facts, Isolated, Memory, Pool, Programs, Stray, System
from kvmsup.model.topology import Topology
from kvmsup.plan.paths import BINARY

Value = TypeVar("Value")


def read(root: str) -> Facts:
    """What the files below `root` say. A file that is missing or wrong is one fact less, never an error."""
    processor = kvmfacts.processor(root)
    guests = _attempt(lambda: claims.read_all(root))
    return Facts(
        processor=processor,
        kvm=kvmfacts.kvm(root, processor),
        cpus=_cpus(root, guests or {}),
        memory=_memory(root, guests or {}),
        system=_system(root),
        guests=guests,
    )


# On a host with much else to do QEMU takes its time to say who it is.
_ANSWER_SECONDS = 20


def programs() -> Programs:
    """What systemd and QEMU say of their versions."""
    return Programs(_first_line("systemctl", "--version"), _first_line(BINARY, "--version"))


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout.partition("\n")[0]


def _attempt(reading: Callable[[], Value]) -> Value | None:
    try:
        return reading()
    except (KvmsupError, OSError, ValueError):
        return None


def _cpus(root: str, guests: Mapping[str, Claim]) -> Cpus:
    cpu = f"{root}/sys/devices/system/cpu"
    topology, trouble = None, ""
    try:
        topology = sysfs.topology(root)
    except HostError as error:
        trouble = error.what
    directory = f"{cpu}/vulnerabilities"
    told = {name: text(f"{directory}/{name}") or "" for name in listed(directory) or ()}
    # Those that run: attach counts from the first instruction on.
    isolated = tuple(_isolated(root, claim) for claim in guests.values() if intrusions.counted(root, claim))
    return Cpus(topology, trouble, text(f"{cpu}/smt/control"), told, _strays(root, topology), isolated)


def _isolated(root: str, claim: Claim) -> Isolated:
    ran = _attempt(lambda: intrusions.since_start(root, claim))
    back = masks.astray(root, claim.isolated)
    wrong = partition.amiss(root, claim) or (f"somebody has moved {', '.join(back)} there again" if back else "")
    return Isolated(claim.guest, claim.isolated, None if ran is None else tuple(ran), wrong)


def _strays(root: str, topology: Topology | None) -> tuple[Stray, ...] | None:
    isolated = topology.isolated & topology.online if topology else frozenset()
    if not isolated:
        return ()
    if text(f"{root}/proc/1/stat") is None:  # mounted with hidepid=
        return None
    return tuple(stray for stray in _last_ran_on(root, isolated) if not _is_guests(root, stray))


def _last_ran_on(root: str, cpus: frozenset[int]) -> Iterator[Stray]:
    for pid in filter(str.isdecimal, listed(f"{root}/proc") or ()):
        for tid in filter(str.isdecimal, listed(f"{root}/proc/{pid}/task") or ()):
            found = proc.stat(f"{root}/proc/{pid}/task/{tid}")
            if found and found.last_cpu in cpus and not found.bound and not _works_for_guest(found):
                yield Stray(int(tid), found.name, found.last_cpu)


def _works_for_guest(thread: proc.Stat) -> bool:
    return thread.kernel and thread.name.startswith(("kvm-", "vhost-"))


def _is_guests(root: str, stray: Stray) -> bool:
    return "/kvm.slice/" in (text(f"{root}/proc/{stray.tid}/cgroup") or "")


def _memory(root: str, guests: Mapping[str, Claim]) -> Memory:
    memory = f"{root}/sys/kernel/mm"
    host = _attempt(lambda: config.read_host(configs.HOST_FILE, configs.read_host(root)))
    return Memory(
        pools=tuple(_pools(root)),
        transparent=text(f"{memory}/transparent_hugepage/enabled"),
        ksm=text(f"{memory}/ksm/run"),
        policy=host.ksm if host else "",
        swap=_attempt(lambda: _swap(text(f"{root}/proc/swaps"))),
        swapped={name: _attempt(lambda one=claim: _swapped(root, one)) or 0 for name, claim in guests.items()},  # type: ignore[misc]
        balancing=text(f"{root}/proc/sys/kernel/numa_balancing"),
    )


def _pools(root: str) -> Iterator[Pool]:
    nodes = f"{root}/sys/devices/system/node"
    for node in _numbers(r"node(\d{1,4})", listed(nodes) or ()):
        for kibibytes in _numbers(r"hugepages-(\d{1,12})kB", listed(f"{nodes}/node{node}/hugepages") or ()):
            pool = _attempt(lambda node=node, size=kibibytes << 10: hugepages.pool(root, node, size))  # type: ignore[misc]
            if pool:
                yield Pool(node, kibibytes << 10, pool.total, pool.free)


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    found = (re.fullmatch(pattern, name, re.ASCII) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _swap(told: str | None) -> tuple[int, int] | None:
    """Size and use in bytes of all of /proc/swaps (proc(5)), whose columns are in KiB. Raises ValueError."""
    if not told or not told.startswith("Filename"):
        return None
    rows = [line.split() for line in told.splitlines()[1:]]
    if any(len(row) < 4 for row in rows):
        raise ValueError(told)
    return sum(int(row[-3]) << 10 for row in rows), sum(int(row[-2]) << 10 for row in rows)


def _swapped(root: str, claim: Claim) -> int:
    """VmSwap of /proc/PID/status of the guest's processes, in bytes."""
    told = "\n".join(text(f"{root}/proc/{pid}/status") or "" for pid in cgroup.processes(root, claim))
    return sum(
        int(kibibytes) << 10 for kibibytes in re.findall(r"^VmSwap:\s*(\d{1,15}) kB", told, re.ASCII | re.MULTILINE)
    )


def _system(root: str) -> System:
    return System(
        release=text(f"{root}/proc/sys/kernel/osrelease"),
        command_line=text(f"{root}/proc/cmdline"),
        controllers=text(f"{root}/sys/fs/cgroup/cgroup.controllers"),
        booted=os.path.isdir(f"{root}/run/systemd/system"),  # sd_booted(3)
        clocksource=text(f"{root}/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        vendor=text(f"{root}/sys/class/dmi/id/sys_vendor") or "",
    )
