# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest meets on its host: the CPUs that are not to be had, and why; the memory that is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest, Host
from kvmsup.model.topology import Topology
from kvmsup.records import NamedTuple

OWNED, EMULATOR = "is dedicated to guest", "runs QEMU's own threads of guest"


class Holder(NamedTuple):
    """Which guest a CPU is not to be had for, and why: OWNED or EMULATOR."""

    guest: str
    how: str


class Scene(NamedTuple):
    """`holders` by CPU; `kept`: shared guests by the CPU that is the last one of a vCPU; `free`: bytes by node."""

    topology: Topology
    housekeeping: frozenset[int]
    claims: Sequence[Claim]
    holders: Mapping[int, Holder]
    kept: Mapping[int, str]
    free: Mapping[int, int]


def around(guest: Guest, host: Host, topology: Topology, claims: Sequence[Claim], free: Mapping[int, int]) -> Scene:
    """The scene of `guest` beside the guests of `claims`."""
    housekeeping = housekeeping_of(host, topology)
    holders = _holders(guest, claims, housekeeping)
    kept = _kept(claims, holders, housekeeping) if guest.placement.dedicated else {}
    return Scene(topology, housekeeping, claims, holders, kept, free)


def housekeeping_of(host: Host, topology: Topology) -> frozenset[int]:
    """The CPUs that no guest is given: those of /etc/kvmsup.toml, or the first cores, as far as they are online."""
    return (host.housekeeping or topology.housekeeping()) & topology.online


def _holders(guest: Guest, claims: Sequence[Claim], housekeeping: frozenset[int]) -> dict[int, Holder]:
    holders: dict[int, Holder] = {}
    for claim in claims:
        if guest.placement.dedicated:
            # Where another guest's own threads were put, outside housekeeping, nobody can be alone.
            busy = claim.emulator.union(*claim.iothread.values()) - housekeeping
            holders |= dict.fromkeys(busy, Holder(claim.guest, EMULATOR))
        holders |= dict.fromkeys(claim.own_cpus, Holder(claim.guest, OWNED))
    return holders


def _kept(claims: Sequence[Claim], holders: Mapping[int, Holder], housekeeping: frozenset[int]) -> dict[int, str]:
    """A CPU for each vCPU of a shared guest that could lose its last one otherwise, with the guest's name."""
    kept: dict[int, str] = {}
    owned = frozenset(cpu for cpu, holder in holders.items() if holder.how == OWNED)
    safe = housekeeping - owned
    for claim in claims:
        for cpus in () if claim.dedicated else set(claim.vcpu):
            if cpus.isdisjoint(safe) and cpus.isdisjoint(kept):
                # Rather one that is not to be had anyway.
                left = sorted(cpus - owned, key=lambda cpu: (cpu not in holders, cpu))
                kept |= dict.fromkeys(left[:1], claim.guest)
    return kept
