# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStartPost=: plug in what only root may open, pin every thread of the paused QEMU, let the guest run.

It runs at every start, so it imports little; QEMU's end is watched throughout, because systemd would wait for this
program even when QEMU is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence

from kvmsup import cpulist, sizes
from kvmsup.effects import cgroup, journal, kernel, pin, proc, qmp, threads
from kvmsup.entry import stopping
from kvmsup.errors import HostError, KvmsupError, QmpError
from kvmsup.model import claim as claim_text
from kvmsup.model.claim import Claim
from kvmsup.plan import plugs
from kvmsup.plan.duties import Duty
from kvmsup.plan.paths import socket
from kvmsup.steps import step

# For the kernel to be done with QEMU's exec.
_EXEC_SECONDS = 1.0
# A thread that is born by the first vCPU which runs inherits its mask. That is a moment after cont; on a host too busy
# for that, the supervisor looks once more.
_LATE_LOOKS_SECONDS = (0.0, 0.001, 0.002, 0.004, 0.008)


def main(name: str, root: str = "") -> int:
    """Attach to the guest called `name`; 0, or 1 with the reason on standard error."""
    try:
        pid = int(os.environ["MAINPID"])
    except (KeyError, ValueError):
        journal.say(journal.ERROR, "attach is run by kvm@.service, with MAINPID=")
        return 1
    try:
        claim, plugged = _given(pid, root)
        run(name, pid, claim, root, plugged)
    except stopping.Stopping:
        return 0
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error), error.catalog or "start-failed")
        if isinstance(error, QmpError):
            # QEMU may have refused the CPU, which it says in its own words. Imported here: a good start has no need.
            from kvmsup.entry import explain

            if why := explain.refusal(name, root):
                journal.say(journal.ERROR, str(why), why.catalog or "start-failed")
        return 1
    return 0


def _given(pid: int, root: str) -> tuple[Claim, Sequence[plugs.Plug]]:
    """What is to be plugged in where; from here on a stop is heard. QEMU ends with any failure.

    systemd may have loaded another file since it started QEMU: what is plugged goes with QEMU's command line.
    """
    try:
        stopping.listen()
        claim = claim_text.from_environment(os.environ, "the environment")
        started = _started_with(root, pid)
        # A QEMU that has ended may have done so for that reason, as where it finds fewer pages than it was to have.
        generated = (started or os.environ).get(claim_text.GENERATED, claim.loaded)
        if generated != claim.loaded:
            from kvmsup.entry import regenerated  # no edit was loaded in the middle of a usual start

            regenerated.check(root, claim.guest, generated)
        return claim, plugs.given(started)
    except BaseException:  # Stopping, too
        _deafen()
        proc.send(pid, signal.SIGTERM)
        raise


def _deafen() -> None:
    """A stop that comes from here on has nothing to add."""
    with contextlib.suppress(stopping.Stopping):
        stopping.deafen()


def _started_with(root: str, pid: int) -> Mapping[str, str]:
    """QEMU's environment; nothing when it has ended, which is told where it is missed. Raises HostError.

    While the kernel is still at QEMU's exec, there is none (fs/proc/base.c, environ_read).
    """
    until = time.monotonic() + _EXEC_SECONDS
    while not (found := proc.environment(f"{root}/proc/{pid}")) and not proc.has_ended(pid, 0.01):
        if time.monotonic() > until:
            raise HostError(f"what QEMU was started with cannot be read: /proc/{pid}/environ")
    return found


def run(name: str, pid: int, claim: Claim, root: str, plugged: Sequence[plugs.Plug] = ()) -> None:
    """Plug in, pin, verify, run. Raises KvmsupError.

    After an error, and when the unit is to stop, QEMU is ended: at once before the guest's first instruction, as by
    stop after it. systemd would only wait for QEMU, and then kill it.
    """
    ran = False
    try:
        cgroup.check_slice(root, pid, claim)
        step("attach.connect")
        with qmp.Monitor(root + socket(name, "control.qmp"), pid) as monitor:
            wanted = _prepare(monitor, pid, claim, root, plugged)
            if claim.ready:
                from kvmsup.effects import ready  # only guests that speak of themselves need it

                ready.forget(root, name)  # what it said before this start
            if claim.isolate:
                from kvmsup.effects import intrusions  # for guests that are isolated alone

                intrusions.remember(root, claim)
            _silence()
            step("attach.run")
            ran = True
            monitor.execute("cont")
            step("attach.look-again")
            _look_again(root, pid, claim, wanted)
        stopping.deafen()
    except BaseException:  # Stopping, too
        _deafen()
        if ran:
            from kvmsup.entry import stop  # a good start has no need of it

            stop.end(name, pid, root)
        else:
            proc.send(pid, signal.SIGTERM)
        raise


def _silence() -> None:
    """Have systemd hear nobody of this unit any more: create needed that, and QEMU could lie once its guest runs.

    One that says RELOADING=1 is stopped without ExecStop= (src/core/service.c, service_stop), and
    EXTEND_TIMEOUT_USEC= then puts its end off for ever. systemd knows of this since 254 (sd_notify(3)).
    """
    if "NOTIFY_SOCKET" not in os.environ:
        return
    from kvmsup.effects import notify  # only beside create

    notify.tell(NOTIFYACCESS="none")


def _prepare(
    monitor: qmp.Monitor, pid: int, claim: Claim, root: str, plugged: Sequence[plugs.Plug]
) -> dict[int, Duty]:
    """All that has to be done while the guest is paused; returns what was wanted of each thread, by its tid."""
    step("attach.negotiate")
    monitor.negotiate()
    _plug(monitor, plugged, root, claim)
    step("attach.threads")
    wanted = threads.of_guest(root, pid, claim, threads.named_by_qemu(monitor, claim))
    step("attach.isolate")
    if claim.isolate and kernel.has_partitions():
        _isolate(root, claim, pid, wanted)
    step("attach.pin")
    _pin(pid, claim, wanted)
    step("attach.verify")
    _verify(root, claim, wanted)
    step("attach.memory")
    _look_for_hugepages(root, pid, claim)
    return wanted


def _plug(monitor: qmp.Monitor, plugged: Sequence[plugs.Plug], root: str, claim: Claim) -> None:
    """Give QEMU its devices before its threads are looked at: some bring threads of their own (vhost)."""
    if not plugged:
        return
    from kvmsup.effects import handover  # a guest without disks and networks has no need of it

    step("attach.plug")
    claim = _with_late_disks(root, claim, plugged)
    for one in plugged:
        handover.plug(monitor, one, root, claim)
    # The boot order of what is plugged counts from the next reset (softmmu/bootdevice.c, restore_boot_order).
    step("attach.reset")
    monitor.reset()


def _with_late_disks(root: str, claim: Claim, plugged: Sequence[plugs.Plug]) -> Claim:
    """`claim` with the disks that were not there at setup, while the host booted: they are looked at as it does."""
    known = {f"disk.{one.name}" for one in claim.disks}
    missing = {one.about: one.source for one in plugged if isinstance(one.source, plugs.File)}
    late = {about: source for about, source in missing.items() if about not in known}
    if not late:
        return claim
    from kvmsup.entry import latecomers  # a good start has no need of it

    return latecomers.hold(root, claim, late)


def _isolate(root: str, claim: Claim, pid: int, wanted: Mapping[int, Duty]) -> None:
    """Take the guest's CPUs from everybody else. On older kernels setup has fenced them off."""
    from kvmsup.effects import partition  # for guests that are isolated alone

    partition.build(root, claim, pid)
    for tid, duty in wanted.items():
        partition.join(root, claim, tid, duty.cpus)


def _pin(pid: int, claim: Claim, wanted: dict[int, Duty]) -> None:
    for tid, duty in wanted.items():
        pin.pin(tid, duty.cpus)
        if duty.scheduler:
            pin.schedule(tid, duty.scheduler)
    if claim.core_scheduling:
        kernel.share_core_within(pid)


def _verify(root: str, claim: Claim, wanted: dict[int, Duty]) -> None:
    """Read everything back. A thread that has ended meanwhile, such as a worker, has nothing to compare."""
    for tid, duty in wanted.items():
        actual = pin.allowed(tid)
        if actual is None:
            continue
        # The fence may have taken CPUs from a shared guest since its claim: less is right, more never.
        if actual != duty.cpus and (claim.dedicated or not actual < duty.cpus):
            told = f"{_told(root, tid)} may run on CPU {cpulist.render(actual)}"
            what = f"{told} after it was pinned to {cpulist.render(duty.cpus)}"
            raise HostError(what, catalog="pins-wrong")
        if duty.scheduler and pin.scheduled(tid) not in (duty.scheduler, None):
            what = f"{_told(root, tid)} runs as {pin.scheduled(tid)} after it was made {duty.scheduler}"
            raise HostError(what, catalog="pins-wrong")
        if claim.core_scheduling and duty.role != "emulator" and not kernel.core_cookie(tid):
            what = f"{_told(root, tid)} shares its core with anybody after it was given a cookie"
            raise HostError(what, catalog="pins-wrong")


def _look_for_hugepages(root: str, pid: int, claim: Claim) -> None:
    """Say so when they are not all where they were claimed, and only there.

    QEMU has bound and filled them, so that nobody should ever see this; and the guest has its memory all the same, so
    it may run. Ordinary pages are not looked for: see design.md, section 9.
    """
    if not claim.pages:
        return
    from kvmsup.effects import numa_maps  # for guests with hugepages alone

    found = numa_maps.of_size(root, pid, claim.page_size)
    if found != claim.pages:
        size = sizes.render(claim.page_size)
        told = f"its hugepages of {size} are on {_counted(found)}, claimed are {_counted(claim.pages)}"
        journal.say(journal.WARNING, f"{told}; kvmsup status {claim.guest} tells what is where", "pages-elsewhere")


def _counted(pages: Mapping[int, int]) -> str:
    """Pages by node in words."""
    return " and ".join(f"node {node}: {count}" for node, count in sorted(pages.items())) or "no node"


def _told(root: str, tid: int) -> str:
    return f"thread {tid} ({threads.name(root, tid)})"


def _look_again(root: str, pid: int, claim: Claim, wanted: dict[int, Duty]) -> None:
    """Move threads that were born by running, and so with a vCPU's mask, to the emulator's CPUs."""
    looks = _LATE_LOOKS_SECONDS if threads.one_is_born_late(root) else _LATE_LOOKS_SECONDS[:1]
    for seconds in looks:
        time.sleep(seconds)
        late = threads.gather(root, pid, wanted, claim)
        _verify(root, claim, {tid: Duty("emulator", cpus, "") for tid, cpus in late.items()})
        if late:
            return
