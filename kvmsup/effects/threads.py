# SPDX-License-Identifier: LGPL-2.1-or-later
"""The threads of a QEMU: which there are, also those that the kernel made for it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from kvmsup import cpulist
from kvmsup.effects import files, pin, proc, qmp
from kvmsup.errors import HostError, QmpError
from kvmsup.model.claim import Claim
from kvmsup.plan import duties
from kvmsup.plan.duties import Duty, Named


def of_process(root: str, pid: int) -> list[int]:
    """The tids of `pid`. Raises HostError when it is gone."""
    try:
        return sorted(map(int, os.listdir(f"{root}/proc/{pid}/task")))
    except OSError:
        raise HostError(f"process {pid} is gone") from None


def name(root: str, tid: int) -> str:
    """The thread's comm, "" when it is gone. It is for people: any thread may change its own, to any 15 bytes."""
    try:
        return files.printable(files.read(f"{root}/proc/{tid}/comm"))
    except OSError:
        return ""


def of_kernel(root: str, pid: int) -> list[int]:
    """Kernel threads that work for QEMU `pid` outside its task directory.

    That is kvm-pit (arch/x86/kvm/i8254.c), and on older kernels vhost's workers and kvm-nx-lpage-recovery, which have
    become threads of QEMU since (6e890c5d5021, "vhost: use vhost_tasks for worker threads").
    """
    wanted = {f"kvm-pit/{pid}", f"vhost-{pid}", f"kvm-nx-lpage-recovery-{pid}"}
    there = [int(entry) for entry in os.listdir(f"{root}/proc") if entry.isdigit()]
    # They are born after QEMU and so have higher pids, unless the numbers have wrapped.
    for some in ([tid for tid in there if tid > pid], [tid for tid in there if tid < pid]):
        found = [tid for tid in some if name(root, tid) in wanted and _is_kernels(root, tid)]
        if found:
            return found
    return []


def one_is_born_late(root: str) -> bool:
    """Whether the first vCPU that runs makes kvm-nx-lpage-recovery (arch/x86/kvm/mmu/mmu.c, kvm_mmu_post_init_vm).

    Not where the administrator has ruled it out at boot, nor where KVM knows nothing of it.
    """
    try:
        return files.read(f"{root}/sys/module/kvm/parameters/nx_huge_pages") != "never"
    except OSError:
        return False


def _is_kernels(root: str, tid: int) -> bool:
    """Whether `tid` is the kernel's own: anybody may call a process of theirs kvm-pit/1."""
    found = proc.stat(f"{root}/proc/{tid}")
    return found is not None and found.kernel


def named_by_qemu(monitor: qmp.Conversation, claim: Claim) -> Named:
    """The threads that QEMU tells apart, as `claim` has them. Raises QmpError when there are others, or fewer."""
    vcpu = qmp.vcpu_threads(monitor)
    # vCPUs may have been added since, but none may be without CPUs.
    if not set(range(claim.vcpus)) <= set(vcpu) <= set(range(len(claim.vcpu))):
        raise QmpError(f"QEMU has vCPUs {_told(cpulist.render(vcpu))}, {claim.vcpus} were asked for")
    iothread = qmp.iothreads(monitor) if claim.iothread else {}
    if set(iothread) != set(claim.iothread):
        told = _told(", ".join(sorted(iothread)))
        raise QmpError(f"QEMU has iothreads {told}, asked for were {', '.join(sorted(claim.iothread))}")
    if len({*vcpu.values(), *iothread.values()}) != len(vcpu) + len(iothread):
        raise QmpError("QEMU named one thread for two")
    return Named(vcpu, iothread)


def _told(listed: str) -> str:
    """What QEMU has listed, which may be anything of up to 8 MiB."""
    return f"{listed[:200]}…" if len(listed) > 200 else listed or "none"


def ask(path: str, pid: int, claim: Claim, seconds: float) -> Named:
    """`named_by_qemu` over a connection of its own to the monitor at `path`, within `seconds`. Raises QmpError."""
    with qmp.Monitor(path, pid, time.monotonic() + seconds) as monitor:
        monitor.negotiate()
        return named_by_qemu(monitor, claim)


def of_guest(root: str, pid: int, claim: Claim, named: Named) -> dict[int, Duty]:
    """The duty of every thread that works for the guest of `claim`.

    Raises HostError when QEMU is gone, and QmpError when one of `named` is not its own: a QEMU that was taken over by
    its guest must not have root move somebody else's thread.
    """
    own = of_process(root, pid)
    foreign = {*named.vcpu.values(), *named.iothread.values()}.difference(own)
    if foreign:
        raise QmpError(f"QEMU named threads that it does not have: {_told(cpulist.render(foreign))}")
    return duties.duties(claim, named, [*own, *of_kernel(root, pid)])


def gather(root: str, pid: int, known: Collection[int], claim: Claim) -> dict[int, frozenset[int]]:
    """Pin every thread of `pid` that is not `known` to the emulator's CPUs; returns where, by thread.

    A thread inherits the mask of the one that made it, so what a vCPU thread gives birth to stands in its way. Raises
    HostError.
    """
    found = {tid: claim.emulator for tid in of_process(root, pid) if tid not in known}
    for tid, cpus in found.items():
        if pin.allowed(tid) not in (cpus, None):
            admit(root, claim, tid, cpus)
            pin.pin(tid, cpus)
    return found


def admit(root: str, claim: Claim, tid: int, cpus: frozenset[int]) -> None:
    """Have `tid` in a control group that has `cpus`, before it is pinned there. Raises HostError."""
    if claim.isolate:
        from kvmsup.effects import partition  # for guests that are isolated alone

        partition.join(root, claim, tid, cpus)
