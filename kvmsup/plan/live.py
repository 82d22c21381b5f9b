# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a reload makes of a running guest's claim: where its threads go now that its file says something else; pure.

A guest moves only when its file has changed in what decides on that: others that came or went are no reason.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvmsup import cpulist
from kvmsup.errors import Refusal
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest, Host
from kvmsup.model.topology import Topology
from kvmsup.plan import placement as placing
from kvmsup.plan import refusals
from kvmsup.plan.placement import Placement

# In place of what tells the guest's file from others in a fingerprint; the host's file is the rest of it.
_UNSETTLED = "-" * 8
_MOVES_VCPUS = ("placement.vcpu", "placement.smt")
_MOVES_OTHERS = ("placement.emulator", "iothread")


class MemoryElsewhere(Refusal):
    """The guest could go there, but its memory would have to go with it, which only a restart does."""


def moves(keys: Collection[str]) -> bool:
    """Whether the change of one of `keys` may move a thread."""
    return any(key.startswith((*_MOVES_VCPUS, *_MOVES_OTHERS)) for key in keys)


def place(
    guest: Guest, claim: Claim, keys: Collection[str], host: Host, topology: Topology, others: Sequence[Claim]
) -> Placement:
    """Where the running `guest` of `claim` goes beside `others`, now that `keys` have changed; its memory stays.

    Raises MemoryElsewhere, or Refusal, or Taken where other guests are the reason.
    """
    wishes, stay = guest.placement, not any(key.startswith(_MOVES_VCPUS) for key in keys)
    if stay:
        # What is offline, or others' own (the fence keeps a shared guest off), may come back: the claim keeps it.
        out = frozenset[int]().union(*(other.own_cpus for other in others))
        wishes = wishes._replace(vcpu=tuple((cpus & topology.online) - out for cpus in claim.vcpu))
        _check_cells(guest, claim, wishes.vcpu)
    elif claim.dedicated and not wishes.vcpu:
        wishes = wishes._replace(nodes=claim.nodes)
    # Its memory is there, so nothing has to be free for it, and no other node is as good.
    free = {node: guest.memory.size * (1 + (node in claim.nodes)) for node in topology.nodes}
    found = placing.place(guest._replace(placement=wishes), host, topology, others, free)
    if claim.nodes and (not found.nodes <= claim.nodes or found.cells != claim.cells):
        where, now = cpulist.render(found.nodes), cpulist.render(claim.nodes)
        raise MemoryElsewhere(f"its memory would go from node {now} to node {where}")
    return found._replace(vcpu=claim.vcpu, idle=claim.idle, fill=claim.fill) if stay else found


def _check_cells(guest: Guest, claim: Claim, vcpu: Sequence[frozenset[int]]) -> None:
    """Raises Refusal when a node of the guest has no CPU of the host by which to tell where it is."""
    for number, cell in enumerate(guest.cells):
        if not any(vcpu[index] for index in cell.vcpus):
            gone = frozenset[int]().union(*(claim.vcpu[index] for index in cell.vcpus))
            what = f"CPU {cpulist.render(gone)}, all that guest node {number} has, is offline"
            raise Refusal(what, f"echo 1 > /sys/devices/system/cpu/cpu{min(gone)}/online", "no-cpus")


def check_real_time(claim: Claim) -> None:
    """Raises Refusal when a real-time vCPU of `claim` may run where another thread of its QEMU has to.

    `place` does so too, but a change of the scheduler alone moves nobody.
    """
    others = {f"iothread.{name}.cpus": cpus for name, cpus in claim.iothread.items()}
    for asked, cpus in ({"placement.emulator": claim.emulator} | others).items():
        refusals.check_real_time(bool(claim.scheduler), asked, cpus & frozenset[int]().union(*claim.vcpu))


def claim_after(guest: Guest, claim: Claim, keys: Collection[str], placement: Placement | None) -> Claim:
    """The claim once `keys` have been applied, for threads with `placement`, if they move.

    It fits no guest's file until `loaded` says so, so that a start from here on claims anew.
    """
    balloon = guest.memory.balloon
    after = claim._replace(loaded=_UNSETTLED + claim.loaded[len(_UNSETTLED) :])
    if placement:
        after = after._replace(
            vcpu=placement.vcpu,
            idle=placement.idle,
            emulator=placement.emulator,
            iothread=placement.iothread,
            fill=placement.fill,
        )
    if "placement.scheduler" in keys:
        after = after._replace(scheduler=placing.policy(guest))
    if "memory.ksm" in keys:
        after = after._replace(ksm=placing.merges(guest))
    if balloon and "memory.balloon.min" in keys:
        after = after._replace(balloon=balloon.least)
    if balloon and "memory.balloon.auto" in keys:
        after = after._replace(balloon_auto=balloon.auto)
    return after


def loaded(now: str, asked: str, waiting: bool) -> str:
    """The fingerprint for a claim that has `now`, once all but what is `waiting` for a restart is as in `asked`.

    With another host's file the same guest might go elsewhere, so that is left to the next start.
    """
    return now if waiting or now[len(_UNSETTLED) :] != asked[len(_UNSETTLED) :] else asked
