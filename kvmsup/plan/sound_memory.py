# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges the host's memory: hugepages, samepage merging, swap and what moves pages about."""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup import sizes
from kvmsup.model.hostfacts import Facts, Pool
from kvmsup.plan.finding import Finding, number, ok, unknown, warn

_KSM = "/sys/kernel/mm/ksm/run"
_TRANSPARENT = "/sys/kernel/mm/transparent_hugepage/enabled"


def judge(facts: Facts) -> Iterator[Finding]:
    """The area's findings."""
    by_size: dict[int, list[Pool]] = {}
    for pool in facts.memory.pools:
        by_size.setdefault(pool.size, []).append(pool)
    for size, pools in sorted(by_size.items()):
        yield _pool(size, pools)
    if not by_size:
        yield unknown("hugepages", "this kernel tells of no pools")
    yield _transparent(facts)
    yield _ksm(facts)
    yield _swap(facts)
    yield from _balancing(facts)


def _pool(size: int, pools: list[Pool]) -> Finding:
    what = f"{sizes.render(size)} pages"
    if not any(pool.total for pool in pools):
        return ok(what, "none reserved; each start reserves its own")
    parts = [f"node {pool.node}: {_of(pool)}" for pool in pools]
    return ok(what, "; ".join(parts))


def _of(pool: Pool) -> str:
    return f"{pool.total}, {pool.free} free" if pool.total else "none"


def _transparent(facts: Facts) -> Finding:
    text = facts.memory.transparent
    chosen = (text or "").partition("[")[2].partition("]")[0]
    if chosen in ("always", "madvise"):
        return ok("THP", f"{chosen}: QEMU asks for it")
    if chosen == "never":
        fix = f"echo madvise > {_TRANSPARENT}\n# and transparent_hugepage=madvise on the kernel's command line"
        return warn("THP", "never: guests without hugepages = have nothing but 4K pages", fix)
    return unknown("THP", "this kernel does not tell" if text is None else f"{_TRANSPARENT} says {text[:30]!r}")


def _ksm(facts: Facts) -> Finding:
    state, guests = number(facts.memory.ksm), facts.guests
    if state is None or guests is None:
        return unknown("KSM", f"{_KSM} cannot be read" if guests is not None else "the guests' claims cannot be read")
    consenting = sorted(name for name, claim in guests.items() if claim.ksm)
    if state == 1:
        if consenting:
            return ok("KSM", f"on, for {', '.join(consenting)}")
        return warn(
            "KSM", "on, although no guest that runs consents to it", f"echo 0 > {_KSM}  # and stop who turned it on"
        )
    if consenting and facts.memory.policy == "always":
        told = f"off, although {', '.join(consenting)} would have it on"
        return warn("KSM", told, f"echo 0 > {_KSM}; systemctl restart kvmsup")
    if consenting and facts.memory.policy == "pressure":
        return ok("KSM", "off: it waits until memory is short, as /etc/kvmsup.toml says")
    return ok("KSM", "off, as /etc/kvmsup.toml says" if consenting else "off: no guest that runs asks for it")


def _swap(facts: Facts) -> Finding:
    if facts.memory.swap is None:
        return unknown("swap", "/proc/swaps cannot be read")
    out = {name: size for name, size in facts.memory.swapped.items() if size}
    if out:
        parts = ", ".join(f"{_mib(size)} of {name}" for name, size in sorted(out.items()))
        return warn("swap", f"guests' memory is in it: {parts}", "lock = true below [memory] of each, then restart it")
    size, used = facts.memory.swap
    return ok("swap", f"{_mib(used)} of {_mib(size)} in use, nothing of a guest's" if size else "none")


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _balancing(facts: Facts) -> Iterator[Finding]:
    """It leaves alone what a policy binds to a node (mm/mempolicy.c, vma_policy_mof), so all but unbound memory."""
    topology = facts.cpus.topology
    if topology and len(topology.nodes) < 2:
        return
    state = number(facts.memory.balancing)
    if state is None:
        yield unknown("NUMA balancing", "this kernel does not tell")
        return
    unbound = sorted(name for name, claim in (facts.guests or {}).items() if claim.dedicated and not claim.nodes)
    if state & 1 and unbound:
        told = f"on: it halts {', '.join(unbound)} to move pages, whose memory is bound to no node"
        fix = "sysctl kernel.numa_balancing=0\n" "echo kernel.numa_balancing=0 > /etc/sysctl.d/60-kvmsup.conf"
        yield warn("NUMA balancing", told, fix)
    else:
        yield ok("NUMA balancing", "on; what is bound to a node stays there" if state & 1 else "off")
