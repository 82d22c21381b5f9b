# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests whose CPUs are isolated: what is refused, and what is told of what ran there. The rest is the lab's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvmsup import cpulist
from kvmsup.cli import isolation
from kvmsup.effects import cgroup, interrupts, intrusions, kernel
from kvmsup.errors import HostError, Refusal
from kvmsup.model.guest import Guest, Host, IoThread
from kvmsup.model.hostfacts import Intrusion
from kvmsup.plan.placement import place
from tests.unit import trees
from tests.unit.hosts import HOST, claim, guest, topology

FREE = {0: 1 << 34, 1: 1 << 34}


def isolated(vcpus: int = 2, **wishes: Any) -> Guest:
    found = guest(vcpus, name="rt", dedicated=True, vcpu=wishes.pop("vcpu", ()))
    return found._replace(placement=found.placement._replace(isolate=True, **wishes))


def test_its_cpus_are_isolated_and_the_reasons_say_so() -> None:
    found = place(isolated(), HOST, topology(2, 2, 2), [], FREE)
    assert found.vcpu == (frozenset((1,)), frozenset((5,)))
    assert "CPU 1,5 isolated while it runs: the host is on the others" in found.why
    assert not any("SMT siblings, are not isolated" in why for why in found.why)


def test_a_sibling_that_stays_the_hosts_is_told() -> None:
    found = place(isolated(1), HOST, topology(2, 2, 2), [], FREE)
    assert "CPU 5, their SMT siblings, are not isolated, and take from their cores" in found.why
    found = place(isolated(1, smt="isolate"), HOST, topology(2, 2, 2), [], FREE)
    assert "CPU 1,5 isolated while it runs: the host is on the others" in found.why


@pytest.mark.parametrize("asked", ["placement.emulator", "iothread.io0.cpus"])
def test_qemus_other_threads_are_elsewhere(asked: str) -> None:
    wanted = isolated(vcpu=("2", "3"))
    if asked == "placement.emulator":
        wanted = wanted._replace(placement=wanted.placement._replace(emulator=frozenset((1, 3))))
    else:
        wanted = wanted._replace(iothreads=(IoThread("io0", frozenset((3,))),))
    with pytest.raises(Refusal) as caught:
        place(wanted, HOST, topology(2, 2, 2), [], FREE)
    hint = "choose other CPUs for it, or leave placement.isolate out"
    assert str(caught.value) == f"{asked}: CPU 3 is isolated, for vCPUs alone\n  hint: {hint}"


def test_the_host_keeps_a_housekeeping_cpu() -> None:
    """All that its file names are offline, so that nothing else would keep a guest from the last CPU."""
    host = Host(frozenset((0, 1)), "never")
    with pytest.raises(Refusal) as caught:
        place(isolated(), host, topology(2, 2, 2, offline=(0, 1)), [], FREE)
    assert str(caught.value) == (
        "with CPU 4-5 isolated the host would have no housekeeping CPU that is online\n"
        "  hint: bring one online, or set cpu.housekeeping in /etc/kvmsup.toml"
    )


def test_an_older_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "version", lambda: (6, 1))
    with pytest.raises(HostError, match=r"^placement.isolate: on this kernel a cpuset that changes undoes the pins"):
        kernel.check_isolation()
    for version, partitions in (((6, 2), False), ((6, 6), False), ((6, 7), True), ((7, 0), True)):
        monkeypatch.setattr(kernel, "version", lambda found=version: found)
        kernel.check_isolation()
        assert kernel.has_partitions() == partitions


RT = claim("rt", ["2", "3"])._replace(isolate=True)
BEFORE = {
    "interrupts": """\
           CPU0       CPU2       CPU3
 24:          5          7          1  PCI-MSIX-0000:00:03.0   0-edge      virtio0-config
 25:          5          7          1  IR-PCI-MSIX-0000:02:00.0   1-edge
LOC:        100        200        300   Local timer interrupts
ERR:          0
MIS:          0""",
    "softirqs": """\
                    CPU0       CPU2       CPU3
          HI:          1          1          1
       TIMER:         10         20         30""",
}
AFTER = {
    "interrupts": BEFORE["interrupts"].replace("7          1  PCI", "9          1  PCI").replace("300", "345"),
    "softirqs": BEFORE["softirqs"].replace("20", "21"),
}


def ran(root: str, tables: dict[str, str], switches: dict[int, tuple[str, int]]) -> None:
    for name, text in tables.items():
        trees.write(root, f"/proc/{name}", text)
    for pid, (name, count) in switches.items():
        trees.write(root, f"/proc/{pid}/stat", trees.stat(name, 2, 0x4200000))
        lines = f"voluntary_ctxt_switches:\t{count}\nnonvoluntary_ctxt_switches:\t1"
        trees.write(root, f"/proc/{pid}/status", f"Name:\tx\n{lines}")


def test_what_ran_there_is_counted_since_the_start(tmp_path: Any) -> None:
    root = str(tmp_path)
    ran(root, BEFORE, {16: ("ksoftirqd/2", 5), 17: ("kworker/2:0-events", 70)})
    assert intrusions.since_start(root, RT) is None
    intrusions.remember(root, RT)
    assert intrusions.since_start(root, RT) == []
    # A worker is called after its work, and another one has come.
    ran(root, AFTER, {16: ("ksoftirqd/2", 5), 17: ("kworker/2:0-mm_percpu_wq", 73), 99: ("kworker/2:1", 2)})
    assert intrusions.since_start(root, RT) == [
        Intrusion(2, "interrupt", "virtio0-config (24)", 2),
        Intrusion(2, "softirq", "TIMER", 1),
        Intrusion(2, "thread", "kworker/2:0-mm_percpu_wq", 3),
        Intrusion(2, "thread", "kworker/2:1", 3),
        Intrusion(3, "interrupt", "Local timer interrupts (LOC)", 45),
    ]
    intrusions.forget(root, "rt")
    intrusions.forget(root, "rt")
    assert intrusions.since_start(root, RT) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[1, 2]]", "null", '[["2", "x", "y"]]'])
def test_a_record_that_is_nonsense_is_none(tmp_path: Any, text: str) -> None:
    root = str(tmp_path)
    ran(root, BEFORE, {})
    trees.write(root, "/run/kvmsup/isolated/rt", text)
    assert intrusions.since_start(root, RT) in (None, *([intrusions.since_start(root, RT)] if text == "{}" else []))


def report(**changes: Any) -> dict[str, Any]:
    found = {"cpus": "2-3", "partition": True, "amiss": "", "stuck": [], "ran": [], "noise": None}
    return found | changes


def test_what_a_person_sees() -> None:
    assert isolation.lines(report()) == ["  isolation  CPU 2-3: nothing else is scheduled there, and no load balanced"]
    names = [f"n{number}" for number in range(7)]
    some = [Intrusion(2, "softirq", name, 9 - place)._asdict() for place, name in enumerate(names)]
    lines = isolation.lines(
        report(
            partition=False,
            stuck=[{"irq": 33, "name": "virtio0-req.6"}],
            ran=[*some, Intrusion(3, "thread", "ksoftirqd/3", 1)._asdict()],
            noise=[{"cpu": 2, "seconds": 2.0, "least": 5000, "gaps": 12, "longest": 7300, "lost": 84000, "guest": 0}],
        )
    )
    assert "\n".join(lines) == (
        "  isolation  CPU 2-3: all services keep off\n"
        "             interrupts that cannot be moved: virtio0-req.6 (33)\n"
        "\n"
        "  CPU  WHAT OF THE KERNEL RAN THERE  SINCE THE GUEST STARTED  TIMES\n"
        "  2    softirq                       n0                       9\n"
        "  2    softirq                       n1                       8\n"
        "  2    softirq                       n2                       7\n"
        "  2    softirq                       n3                       6\n"
        "  2    softirq                       n4                       5\n"
        "  2    softirq                       (2 others)               7\n"
        "  3    thread                        ksoftirqd/3              1\n"
        "\n"
        "  CPU  LISTENED FOR  GAPS OVER 5 µs  LONGEST  OF THE TIME  OF WHICH THE GUEST ITSELF\n"
        "  2    2 s           12              7.3 µs   0.0042 %     0.0000 %"
    )
    (line,) = isolation.lines(report(amiss="the kernel says 'member'"))
    assert line == "  isolation  CPU 2-3: drift: the kernel says 'member'"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\0", []),
        ("", []),
        ("CPU0 x\n1: 2 3", []),
        (f"CPU{'9' * 5000}\n1: 2", []),
        (f"CPU0\n1: {'9' * 5000} PCI 1 eth0\n2: 7 PCI 1 eth1", [("1", {}, "eth0"), ("2", {0: 7}, "eth1")]),
        (f"CPU0\n{'9' * 5000}: 1 PCI 1 eth0", [("9" * 5000, {0: 1}, "")]),
    ],
)
def test_interrupts_that_no_kernel_has_counted(tmp_path: Any, text: str, rows: list[Any]) -> None:
    trees.write(str(tmp_path), "/proc/interrupts", text)
    found = interrupts.rows(f"{tmp_path}/proc/interrupts")
    assert [(row.label, dict(row.counts), row.device) for row in found] == rows


@pytest.mark.parametrize("text", ["\0", "1\nx", "9" * 5000])
def test_a_control_group_that_no_kernel_has_written(tmp_path: Any, text: str) -> None:
    trees.write(str(tmp_path), f"{cgroup.directory('', RT)}/cgroup.procs", text)
    assert cgroup.processes(str(tmp_path), RT) == []


def test_the_record_is_small(tmp_path: Any) -> None:
    """Only its own CPUs' counts are in it, on a host however large."""
    root = str(tmp_path)
    heads = " ".join(f"CPU{cpu}" for cpu in range(512))
    line = "LOC: " + " ".join(map(str, range(512)))
    trees.write(root, "/proc/interrupts", f"{heads}\n{line} Local timer interrupts")
    intrusions.remember(root, RT)
    told = json.loads(trees.read(root, "/run/kvmsup/isolated/rt"))
    assert told == [[cpu, "interrupt", "Local timer interrupts (LOC)", cpu] for cpu in sorted(cpulist.parse("2-3"))]
