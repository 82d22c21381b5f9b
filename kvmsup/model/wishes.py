# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML's [placement] → Wishes, held against the host's topology where that is known."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvmsup import cpulist
from kvmsup.model.guest import Cpu, IoThread, Scheduler, Wishes
from kvmsup.model.table import Table
from kvmsup.model.topology import Topology

# "IO NAME" is the thread's name, of which the kernel keeps 15 characters (TASK_COMM_LEN).
# Names that memory backends, and what fills them, have are not free (plan/qemu.py).
_IOTHREAD = r"(?!(mem|fill)[0-9])[a-z][a-z0-9-]{0,11}"
_SCHEDULER = r"(fifo|rr):([1-9][0-9]?)"


def read(table: Table, cpu: Cpu, topology: Topology | None) -> Wishes:
    """The [placement] table, for a guest with `cpu`; what `topology`, if told, cannot give is noted too."""
    dedicated = table.choice("cpus", ("shared", "dedicated"), "shared") == "dedicated"
    nodes = table.cpus("nodes", '"0"')
    if nodes and topology and not nodes <= topology.nodes:
        missing, there = cpulist.render(nodes - topology.nodes), cpulist.render(topology.nodes)
        table.note("nodes", f"this host has no node {missing}", f"its nodes: {there}")
    elif nodes and topology and not nodes & topology.with_memory:
        what = f"node {cpulist.render(nodes)} of this host has no memory"
        table.note("nodes", what, f"nodes with memory: {cpulist.render(topology.with_memory)}")
    emulator = table.cpus("emulator", '"0-1"')
    if emulator and topology:
        check_on_host(table, "emulator", emulator, topology)
        _check_balanced(table, "emulator", emulator, topology)
    scheduler = _scheduler(table)
    if scheduler and not dedicated:
        what = "a real-time vCPU on shared CPUs would starve whatever else runs there"
        table.note("scheduler", what, 'add cpus = "dedicated", or leave scheduler out', at_key=True)
    smt = _smt(table, cpu, dedicated)
    vcpu = _pins(table, cpu, dedicated, smt, topology) if "vcpu" in table else ()
    core_scheduling, isolate = table.boolean("core-scheduling", False), table.boolean("isolate", False)
    if isolate and not dedicated:
        what = "on shared CPUs there is nothing that could be isolated"
        table.note("isolate", what, 'add cpus = "dedicated", or leave isolate out', at_key=True)
    return Wishes(dedicated, nodes, emulator, scheduler, smt, core_scheduling, vcpu, isolate)


def _smt(table: Table, cpu: Cpu, dedicated: bool) -> str:
    smt = table.choice("smt", ("prefer", "require", "isolate"), "prefer")
    if smt != "prefer" and not dedicated:
        what = "on shared CPUs the siblings are anybody's"
        table.note("smt", what, 'add cpus = "dedicated", or leave smt out', at_key=True)
    elif smt == "isolate" and cpu.threads > 1:
        what = f"cpu.threads = {cpu.threads} needs siblings that run together, which this keeps idle"
        table.note("smt", what, 'threads = 1, or smt = "require"')
    return smt


def read_iothreads(table: Table, keys: tuple[str, ...], topology: Topology | None) -> tuple[IoThread, ...]:
    """The [iothread.NAME] tables, by name."""
    found = []
    for name in sorted(table):
        if not re.fullmatch(_IOTHREAD, name):
            rule = "a lower-case letter, then up to 11 lower-case letters, digits and dashes; mem0 and fill0 are taken"
            table.note(name, "not a name for an iothread", rule, at_key=True)
            continue
        one = table.table(name, keys)
        cpus = one.cpus("cpus", '"0"')
        if cpus and topology:
            check_on_host(one, "cpus", cpus, topology)
            _check_balanced(one, "cpus", cpus, topology)
        found.append(IoThread(name, cpus))
    return tuple(found)


def _scheduler(table: Table) -> Scheduler | None:
    text = table.text("scheduler", "", '"fifo:10"')
    if not text:
        return None
    valid = re.fullmatch(_SCHEDULER, text)
    if not valid:
        table.note("scheduler", f'"{text}" is not a policy and its priority', '"fifo:10" or "rr:10", from 1 to 99')
        return None
    return Scheduler(valid[1], int(valid[2]))


def _pins(table: Table, cpu: Cpu, dedicated: bool, smt: str, topology: Topology | None) -> tuple[frozenset[int], ...]:
    """Host CPUs by vCPU index. A list per vCPU on shared CPUs, exactly one CPU of its own on dedicated ones."""
    written = table.table("vcpu", ())
    indexes = {str(index): index for index in range(cpu.maxcpus)}
    pins: dict[int, frozenset[int]] = {}
    taken: dict[int, str] = {}
    for key in written:
        if key not in indexes:
            span = "0" if cpu.maxcpus == 1 else f"0 to {cpu.maxcpus - 1}"
            written.note(key, "no such vCPU", f"this guest has vCPU {span}", at_key=True)
            continue
        cpus = written.cpus(key, '"2"')
        if cpus:
            if topology:
                check_on_host(written, key, cpus, topology)
            if dedicated:
                _own_cpu(written, key, cpus, taken)
            elif topology:
                _check_balanced(written, key, cpus, topology)
            pins[indexes[key]] = cpus
    missing = [key for key in indexes if key not in written]
    if missing and not any(problem.severity == "error" for problem in table.document.problems):
        count = "every vCPU, up to maxcpus, needs its CPUs here"
        table.note("vcpu", f"vCPU {cpulist.render(map(int, missing))} has none: {count}", f'{missing[0]} = "…"')
    elif dedicated and topology:
        _check_siblings(written, cpu.threads, smt, pins, topology)
    return tuple(pins.get(index, frozenset()) for index in range(cpu.maxcpus))


def _own_cpu(table: Table, key: str, cpus: frozenset[int], taken: dict[int, str]) -> None:
    if len(cpus) > 1:
        what = f"{cpulist.render(cpus)} are {len(cpus)} CPUs; a dedicated vCPU has one of its own"
        table.note(key, what, f'{key} = "{min(cpus)}", or cpus = "shared"')
    for number in cpus:
        other = taken.setdefault(number, key)
        if other != key:
            table.note(key, f"CPU {number} is vCPU {other}'s already", "each dedicated vCPU needs a CPU of its own")


def check_on_host(table: Table, key: str, cpus: frozenset[int], topology: Topology) -> None:
    """Note those of `cpus` that are not there, or offline."""
    missing = cpus - topology.present
    offline = cpus & topology.present - topology.online
    if missing:
        hint = f"its CPUs: {cpulist.render(topology.online)}"
        table.note(key, f"this host has no CPU {cpulist.render(missing)}", hint)
    elif offline:
        hint = f"echo 1 > /sys/devices/system/cpu/cpu{min(offline)}/online"
        table.note(key, f"CPU {cpulist.render(offline)} is offline", hint)


def _check_balanced(table: Table, key: str, cpus: frozenset[int], topology: Topology) -> None:
    """The scheduler moves nothing between isolated CPUs: all threads would stay on the first."""
    isolated = cpus & topology.isolated
    if isolated and len(cpus) > 1:
        what = f"CPU {cpulist.render(isolated)} is isolated by isolcpus=, where the kernel does not spread threads"
        table.note(key, what, "name a single CPU, or others")


def _check_siblings(
    table: Table, threads: int, smt: str, pins: Mapping[int, frozenset[int]], topology: Topology
) -> None:
    """Chosen CPUs must be what the guest is told they are, and what `smt` says."""
    cpus = {index: min(cpus) for index, cpus in pins.items() if min(cpus, default=-1) in topology.cpus}
    first_of: dict[frozenset[int], int] = {}
    for index, cpu in sorted(cpus.items()):
        core = topology.siblings(cpu)
        lead = cpus.get(index - index % threads, cpu)
        other = first_of.setdefault(core, index)
        if cpu not in topology.siblings(lead):
            what = (
                f"threads = {threads}, but CPU {cpu} is no SMT sibling of vCPU {index - index % threads}'s CPU {lead}"
            )
            table.note(str(index), what, f"its core: {cpulist.render(topology.siblings(lead))}")
        elif smt == "isolate" and other != index:
            table.note(
                str(index), f"CPU {cpu} is on vCPU {other}'s core", 'smt = "isolate" needs a core for each vCPU'
            )
        elif smt == "require" and not core <= set(cpus.values()):
            missing = cpulist.render(core - set(cpus.values()))
            table.note(
                str(index), f"CPU {missing}, its SMT sibling, is not the guest's", 'smt = "require" takes whole cores'
            )
