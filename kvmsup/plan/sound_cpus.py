# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges the host's CPUs: SMT, what guests could spy on across it, and CPUs set apart at boot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from kvmsup import cpulist
from kvmsup.model.hostfacts import Facts, Intrusion, Isolated, Stray
from kvmsup.model.topology import Topology
from kvmsup.plan.finding import Finding, fail, ok, unknown, values, warn

_NAMED = 3
# Where the host's own processes are at risk, guests are no more so than others (Documentation/admin-guide/hw-vuln).
_OF_GUESTS = (
    "gather_data_sampling",
    "indirect_target_selection",
    "l1tf",
    "mds",
    "meltdown",
    "mmio_stale_data",
    "reg_file_data_sampling",
    "retbleed",
    "spec_rstack_overflow",
    "spectre_v2",
    "srbds",
    "tsa",
    "tsx_async_abort",
    "vmscape",
)


def judge(facts: Facts) -> Iterator[Finding]:
    """The area's findings."""
    topology = facts.cpus.topology
    if topology is None:
        yield fail("topology", facts.cpus.trouble, "mount -t sysfs sysfs /sys, or boot a kernel of the distribution")
    else:
        yield _topology(topology)
        yield from _offline(topology)
    yield from _smt(facts, topology)
    yield from _exposed(facts)
    if topology:
        yield from _isolation(facts, topology)
        yield from map(_isolated_guest, facts.cpus.guests)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 'es' if word.endswith('ch') else 's'}"


def _topology(topology: Topology) -> Finding:
    counts = {
        "package": len({cpu.package for cpu in topology.cpus.values()}),
        "node": len(topology.nodes),
        "core": len(topology.cores()),
        "CPU": len(topology.cpus),
    }
    return ok("topology", ", ".join(_counted(count, word) for word, count in counts.items()))


def _offline(topology: Topology) -> Iterator[Finding]:
    """Offline CPUs of cores that have another one online look as if those had no sibling; the kernel says no more."""
    gone = topology.present - topology.online
    if gone:
        listed = cpulist.render(gone)
        told = f"CPU {listed} offline: no guest can be given {'it' if len(gone) == 1 else 'them'}"
        yield warn("offline CPUs", told, f"chcpu -e {listed}")


def _smt(facts: Facts, topology: Topology | None) -> Iterator[Finding]:
    state = (facts.cpus.smt or "").strip()
    threads = max(map(len, topology.cores()), default=1) if topology else 0
    told = {
        "on": f"on, {_counted(threads, 'thread')} a core" if threads else "on",
        "off": "off",
        "forceoff": "off, until the next boot (nosmt=force)",
        "notsupported": "this CPU has none",
        "notimplemented": "this kernel has none",
    }
    if facts.cpus.smt is not None:
        yield ok("SMT", told[state]) if state in told else unknown("SMT", f"smt/control says {state[:20]!r}")


def _exposed(facts: Facts) -> Iterator[Finding]:
    """What the kernel says in cpu/vulnerabilities (hw-vuln/l1tf.rst, mds.rst); itlb_multihit is nx_huge_pages'."""
    if not facts.cpus.vulnerabilities:
        yield unknown("vulnerabilities", "this kernel does not tell")
        return
    told = {name: facts.cpus.vulnerabilities.get(name, "") for name in _OF_GUESTS}
    siblings = [name for name, text in told.items() if "SMT vulnerable" in text]
    if siblings:
        yield warn("SMT siblings", f"guests on one core can read each other's data ({', '.join(siblings)})", _NOSMT)
    open_to = [name for name, text in told.items() if text.startswith("Vulnerable") or "VMX: vulnerable" in text]
    if open_to:
        yield warn("vulnerabilities", f"guests may read what is not theirs ({', '.join(open_to)})", _patch(facts))
    elif not siblings:
        yield ok("vulnerabilities", "none that a guest could use, as far as the kernel knows")


_NOSMT = (
    "give such guests whole cores (dedicated, with threads = 2), or no SMT:\n"
    "echo off > /sys/devices/system/cpu/smt/control  # and nosmt on the kernel's command line"
)


def _patch(facts: Facts) -> str:
    if "off" in [value.partition(",")[0] for value in values(facts.system.command_line, "mitigations")]:
        return "take mitigations=off off the kernel's command line, then reboot"
    return "upgrade kernel and microcode (Debian: intel-microcode or amd64-microcode), then reboot"


def _isolation(facts: Facts, topology: Topology) -> Iterator[Finding]:
    line = facts.system.command_line
    isolated, tickless = topology.isolated & topology.online, topology.nohz_full & topology.online
    if line is None:
        yield unknown("isolation", "/proc/cmdline cannot be read")
    if not isolated and not tickless:
        yield from _nothing_isolated(facts)
        return
    apart = cpulist.render(isolated)
    if isolated != tickless and isolated and tickless:
        told = f"isolcpus={apart} and nohz_full={cpulist.render(tickless)} differ: half of the work is undone"
        yield warn("isolation", told, _boot_with(isolated | tickless))
    elif not isolated:
        told = f"nohz_full={cpulist.render(tickless)} without isolcpus=: the scheduler still puts other threads there"
        yield warn("isolation", told, _boot_with(tickless))
    else:
        yield ok("isolation", f"CPU {apart} by isolcpus={' and nohz_full=' if tickless else ''}")
    yield from _split_cores(isolated, topology)
    yield from _callbacks(isolated - tickless, facts)
    if isolated:
        yield _strays(facts.cpus.strays, topology)


def _callbacks(bare: frozenset[int], facts: Facts) -> Iterator[Finding]:
    """Of isolated CPUs without nohz_full=, which brings it: those that rcu_nocbs= leaves out, where it is used."""
    asked = values(facts.system.command_line, "rcu_nocbs")
    if not asked or asked[-1] == "all":
        return
    try:
        left = bare - cpulist.parse(asked[-1])
    except ValueError:  # "2-N", or what the kernel complains of
        return
    if left:
        told = f"rcu_nocbs={asked[-1]} leaves out CPU {cpulist.render(left)} of isolcpus=: RCU's callbacks run there"
        yield warn("RCU callbacks", told, _boot_with(bare))


def _nothing_isolated(facts: Facts) -> Iterator[Finding]:
    asked = [name for name in ("isolcpus", "nohz_full") if values(facts.system.command_line, name)]
    if asked:
        told = f"{' and '.join(f'{name}=' for name in asked)} on the command line, and the kernel isolates no CPU"
        yield warn(
            "isolation", told, "use lists of CPUs that are there, on a kernel with CONFIG_CPU_ISOLATION and NO_HZ_FULL"
        )
    elif facts.system.command_line is not None:
        offloaded = values(facts.system.command_line, "rcu_nocbs")
        told = f"rcu_nocbs={offloaded[-1]} only" if offloaded else "none at boot"
        yield ok("isolation", f"{told}; guests' CPUs are kept apart while they run")


def _isolated_guest(one: Isolated) -> Finding:
    """What still ran on the CPUs that a guest has isolated, and how a boot would isolate them for good."""
    cpus = cpulist.render(one.cpus)
    if one.amiss:
        fix = f"IRQBALANCE_BANNED_CPULIST={cpus} in /etc/default/irqbalance, where that runs; then\n"
        return warn(
            "isolated guests", f"CPU {cpus} of {one.guest}: {one.amiss}", f"{fix}systemctl restart kvm@{one.guest}"
        )
    told = "not counted" if one.ran is None else _ran(one.ran)
    always = f"isolcpus={cpus} nohz_full={cpus} on the kernel's command line, for good, would leave fewer"
    return ok("isolated guests", f"CPU {cpus} of {one.guest}: {told}; {always}")


def _ran(ran: Sequence[Intrusion]) -> str:
    """How much ran there in all, and on each CPU what ran most often."""
    times = Counter({kind: 0 for kind in ("interrupt", "softirq", "thread")})
    by_cpu: dict[int, list[Intrusion]] = {}
    for found in ran:
        times[found.kind] += found.times
        by_cpu.setdefault(found.cpu, []).append(found)
    told = ", ".join(f"{_counted(times[kind], kind)}" for kind in ("interrupt", "softirq"))
    told += f", and {_counted(times['thread'], 'switch')} to the kernel's own threads since it started"
    for cpu, there in by_cpu.items():
        most = sorted(there, key=lambda found: (-found.times, found.name))
        named = ", ".join(f"{found.name} {found.times}" for found in most[:_NAMED])
        more = f" and {len(most) - _NAMED} more" if len(most) > _NAMED else ""
        told += f"; on CPU {cpu} {named}{more}"
    return told


def _boot_with(numbers: frozenset[int]) -> str:
    listed = cpulist.render(numbers)
    # nohz_full= implies rcu_nocbs= for its CPUs (kernel/rcu/tree_nocb.h, rcu_init_nohz).
    return f"on the kernel's command line: isolcpus={listed} nohz_full={listed}; then reboot"


def _split_cores(isolated: frozenset[int], topology: Topology) -> Iterator[Finding]:
    split = [core for core in topology.cores() if core & isolated and core - isolated]
    if split:
        left = cpulist.render(frozenset().union(*split) - isolated)
        told = f"CPU {left} not isolated, although an SMT sibling is: it takes from the sibling's core"
        yield warn("isolated cores", told, _boot_with(isolated.union(*split)))


def _strays(strays: tuple[Stray, ...] | None, topology: Topology) -> Finding:
    if strays is None:
        return unknown("isolated CPUs", "/proc hides other users' threads (hidepid=)", "run kvmsup host as root")
    if not strays:
        return ok("isolated CPUs", "nothing but guests and the kernel's own last ran there")
    named = ", ".join(f"{stray.name} ({stray.tid}) on CPU {stray.cpu}" for stray in strays[:_NAMED])
    more = f" and {len(strays) - _NAMED} more" if len(strays) > _NAMED else ""
    others = cpulist.render(topology.online - topology.isolated) or cpulist.render(topology.online)
    tids = " ".join(str(stray.tid) for stray in strays)
    fix = f"for tid in {tids}; do taskset -cp {others} $tid; done  # and CPUAffinity= of their services"
    return warn("isolated CPUs", f"other threads last ran there: {named}{more}", fix)
