# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStartPost=: pin every thread of a paused QEMU, read the pins back, and let the guest run.

It runs at every start, so it imports little; QEMU's end is watched throughout, because systemd would wait for this
program even when QEMU is gone.
"""

from __future__ import annotations

import os
import time

from kvmsup import cpulist
from kvmsup.effects import journal, pin, qmp
from kvmsup.errors import HostError, KvmsupError, QmpError
from kvmsup.model import claim as claim_text
from kvmsup.model.claim import Claim
from kvmsup.plan.qemu import socket
from kvmsup.steps import step

# kvm-nx-lpage-recovery is born by the first vCPU that runs and inherits its mask (arch/x86/kvm/mmu/mmu.c,
# kvm_mmu_post_init_vm). That is a moment after cont; where KVM does without it, these waits are what it costs. On a
# host too busy for that, the supervisor looks once more.
_LATE_LOOKS_SECONDS = (0.0, 0.001, 0.002, 0.004, 0.008)


def main(name: str, root: str = "") -> int:
    """Attach to the guest called `name`; 0, or 1 with the reason on standard error."""
    try:
        pid = int(os.environ["MAINPID"])
    except (KeyError, ValueError):
        journal.say(journal.ERROR, "attach is run by kvm@.service, with MAINPID=")
        return 1
    try:
        run(name, pid, claim_text.from_environment(os.environ, "the environment"), root)
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error))
        if isinstance(error, QmpError):
            # QEMU may have refused the CPU, which it says in its own words. Imported here: a good start has no need.
            from kvmsup.entry import explain

            journal.say(journal.ERROR, explain.refusal(name, root))
        return 1
    return 0


def run(name: str, pid: int, claim: Claim, root: str) -> None:
    """Pin, verify, run. Raises KvmsupError; a guest that already runs is then told to power down."""
    step("attach.connect")
    with qmp.Monitor(root + socket(name, "control.qmp"), pid) as monitor:
        step("attach.negotiate")
        monitor.negotiate()
        step("attach.threads")
        wanted = _wanted(root, pid, claim, _vcpu_threads(monitor, claim))
        step("attach.pin")
        _pin(claim, wanted)
        step("attach.verify")
        _verify(root, wanted, not claim.dedicated)
        step("attach.run")
        try:
            monitor.execute("cont")
            step("attach.look-again")
            _look_again(root, pid, claim, wanted)
        except KvmsupError:
            _power_down(monitor)
            raise


def _power_down(monitor: qmp.Monitor) -> None:
    """Press the power button of a guest that may run already; what is to be told is why, not how that went."""
    try:
        monitor.execute("system_powerdown")
    except QmpError:
        pass


def _vcpu_threads(monitor: qmp.Monitor, claim: Claim) -> dict[int, int]:
    found = qmp.vcpu_threads(monitor)
    if set(found) != set(range(claim.vcpus)):
        raise QmpError(f"QEMU has vCPUs {cpulist.render(found) or 'none'}, {claim.vcpus} were asked for")
    if len(set(found.values())) != len(found):
        raise QmpError("QEMU named one thread for two vCPUs")
    return found


def _wanted(root: str, pid: int, claim: Claim, vcpus: dict[int, int]) -> dict[int, frozenset[int]]:
    """CPUs by tid: each vCPU's own, the emulator's for every other thread."""
    wanted = {tid: claim.vcpu[index] for index, tid in vcpus.items()}
    for tid in (*pin.threads(root, pid), *pin.kernel_threads(root, pid)):
        wanted.setdefault(tid, claim.emulator)
    missing = set(vcpus.values()) - set(pin.threads(root, pid))
    if missing:
        raise QmpError(f"QEMU named threads that it does not have: {cpulist.render(missing)}")
    return wanted


def _pin(claim: Claim, wanted: dict[int, frozenset[int]]) -> None:
    policy, _, priority = claim.scheduler.partition(":")
    vcpu_cpus = set(claim.vcpu)
    for tid, cpus in wanted.items():
        pin.pin(tid, cpus)
        if policy and cpus in vcpu_cpus:
            pin.schedule(tid, policy, int(priority))


def _verify(root: str, wanted: dict[int, frozenset[int]], shared: bool) -> None:
    """Read every pin back. A thread that has ended meanwhile, such as a worker, has none to compare."""
    for tid, cpus in wanted.items():
        actual = pin.allowed(tid)
        # The fence may have taken CPUs from a shared guest since its claim: less is right, more never.
        if actual is not None and actual != cpus and not (shared and actual and actual < cpus):
            told = f"thread {tid} ({pin.name(root, tid)}) may run on CPU {cpulist.render(actual)}"
            raise HostError(f"{told} after it was pinned to {cpulist.render(cpus)}")


def _look_again(root: str, pid: int, claim: Claim, wanted: dict[int, frozenset[int]]) -> None:
    """Move threads that were born by running, and so with a vCPU's mask, to the emulator's CPUs."""
    for seconds in _LATE_LOOKS_SECONDS:
        time.sleep(seconds)
        late = pin.gather(root, pid, wanted, claim.emulator)
        _verify(root, late, not claim.dedicated)
        if late:
            return
