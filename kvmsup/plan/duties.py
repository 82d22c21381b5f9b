# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each thread of a guest is for, where it should run and how: the claim and QEMU's tids → duties; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmsup.model.claim import Claim
from kvmsup.records import NamedTuple

# sched(7), SCHED_OTHER: what a real-time vCPU gets while it has to run beside QEMU's own threads.
ORDINARY = "other"


class Duty(NamedTuple):
    """`scheduler` is "fifo:10" or "rr:10", ORDINARY, or "" where whatever the thread has is right."""

    role: str  # "vCPU 0" | "iothread io0" | "emulator"
    cpus: frozenset[int]
    scheduler: str


class Named(NamedTuple):
    """The threads that QEMU tells apart: tids by vCPU index, and by the iothread's name."""

    vcpu: Mapping[int, int]
    iothread: Mapping[str, int]


def duties(claim: Claim, named: Named, tids: Iterable[int]) -> dict[int, Duty]:
    """By tid, vCPUs first: the emulator's for every one of `tids` that is not `named`.

    That covers workers, vhost's threads and kvm-pit: what is in a vCPU's way is better off anywhere else.
    """
    found = {tid: Duty(f"vCPU {index}", claim.vcpu[index], claim.scheduler) for index, tid in named.vcpu.items()}
    for name, tid in named.iothread.items():
        found[tid] = Duty(f"iothread {name}", claim.iothread[name], "")
    for tid in tids:
        found.setdefault(tid, Duty("emulator", claim.emulator, ""))
    return found


def now(duty: Duty, claim: Claim, online: frozenset[int], fence: frozenset[int] | None) -> Duty:
    """What of `duty` can be had: of the CPUs that are online, and for a shared guest inside its `fence`.

    Where none of them is, the thread goes to the emulator's CPUs: anywhere else it would be in another guest's way.
    """
    allowed = online if claim.dedicated or fence is None else online & fence
    if duty.cpus & allowed:
        return duty._replace(cpus=duty.cpus & allowed)
    scheduler = ORDINARY if duty.scheduler else ""
    return duty._replace(cpus=claim.emulator & allowed or allowed - claim.own_cpus, scheduler=scheduler)
