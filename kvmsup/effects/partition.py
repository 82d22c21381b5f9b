# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cpuset partition of a guest that is isolated: on its CPUs nothing of the host runs that can run elsewhere.

The kernel takes these CPUs from every other control group and from its own threads, does not balance load there, and
gives them back when the partition goes, which it does with the guest's unit, whatever ends that (cgroup-v2.rst,
"cpuset.cpus.partition"; a partition so far down is a remote one, Linux 6.7). The unit is delegated, so that systemd
leaves what is in it alone:

    kvm@NAME.service       what systemd runs beside QEMU is in .control
        qemu               QEMU, on the emulator's CPUs
            vcpu           a threaded group: the partition, with the vCPU threads
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator

from kvmsup import cpulist
from kvmsup.effects import cgroup, files, kernel
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim

_EXCLUSIVE, _PARTITION = "cpuset.cpus.exclusive", "cpuset.cpus.partition"
_ISOLATED = "isolated"


def _unit(root: str, claim: Claim) -> str:
    return cgroup.directory(root, claim)


def _qemu(root: str, claim: Claim) -> str:
    return f"{_unit(root, claim)}/{cgroup.QEMU}"


def _vcpu(root: str, claim: Claim) -> str:
    return f"{_qemu(root, claim)}/vcpu"


def build(root: str, claim: Claim, pid: int) -> None:
    """Isolate the CPUs of `claim`, whose QEMU is `pid`, and read that back; its threads are moved by `join`.

    Raises HostError with the kernel's reason.
    """
    cpus = cpulist.render(claim.isolated)
    try:
        _divide(root, claim, pid)
        _isolate(root, claim, cpus)
        wrong = amiss(root, claim)
    except OSError as error:
        wrong = f"{error.filename}: {error.strerror}"
    except HostError as error:
        wrong = error.what
    if wrong:
        raise HostError(f"CPU {cpus} cannot be isolated: {wrong}", _HINT, "not-isolated")


# Who has them may also have nothing else: then the kernel takes them from nobody.
_HINT = "grep . -r /sys/fs/cgroup --include=cpuset.cpus --include=cpuset.cpus.exclusive shows who has which CPUs"


def _divide(root: str, claim: Claim, pid: int) -> None:
    """Have QEMU in a group of its own in the unit, and in that a threaded one. Raises OSError and HostError."""
    unit, qemu, vcpu = (place(root, claim) for place in (_unit, _qemu, _vcpu))
    os.makedirs(qemu, exist_ok=True)
    files.write_attribute(f"{qemu}/cgroup.procs", str(pid))
    files.write_attribute(f"{unit}/cgroup.subtree_control", "+cpuset")
    os.makedirs(vcpu, exist_ok=True)
    if files.read(f"{vcpu}/cgroup.type") != "threaded":
        files.write_attribute(f"{vcpu}/cgroup.type", "threaded")
    files.write_attribute(f"{qemu}/cgroup.subtree_control", "+cpuset")


def _isolate(root: str, claim: Claim, cpus: str) -> None:
    """Make a partition of the threaded group. Raises OSError and HostError."""
    unit, qemu, vcpu = (place(root, claim) for place in (_unit, _qemu, _vcpu))
    if files.read(f"{vcpu}/{_PARTITION}") != "member":
        files.write_attribute(f"{vcpu}/{_PARTITION}", "member")
    with _slices(root) as slices:
        for place, granted in slices.items():
            _grant(place, granted | claim.isolated)
    for place in (unit, qemu, vcpu):
        files.write_attribute(f"{place}/{_EXCLUSIVE}", cpus)
    files.write_attribute(f"{vcpu}/cpuset.cpus", cpus)
    files.write_attribute(f"{vcpu}/{_PARTITION}", _ISOLATED)


@contextlib.contextmanager
def _slices(root: str) -> Iterator[dict[str, frozenset[int]]]:
    """The slices above guests, with the CPUs that each may give away; nobody else changes that meanwhile.

    Raises OSError where there is none.
    """
    above = f"{root}/sys/fs/cgroup/kvm.slice"
    descriptor = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        both = (above, f"{above}/kvm-dedicated.slice")
        yield {place: found for place in both if (found := _list(f"{place}/{_EXCLUSIVE}")) is not None}
    finally:
        os.close(descriptor)


def _grant(place: str, cpus: frozenset[int]) -> None:
    files.write_attribute(f"{place}/{_EXCLUSIVE}", cpulist.render(cpus) or "\n")


# The kernel takes partitions apart behind the removal of their groups, and sees to CPUs that come and go behind that.
_LOOKS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def ended(root: str, claim: Claim) -> bool:
    """Whether the host has the CPUs of `claim` back, waiting for that: its unit is down, and its group removed."""

    def back() -> bool:
        had = _list(f"{root}/sys/fs/cgroup/cpuset.cpus.effective")
        return had is None or claim.isolated - _offline(root) <= had

    return _in_time(back)


def _in_time(done: Callable[[], bool]) -> bool:
    """Whether the kernel, which is behind, has `done` it by and by."""
    for seconds in (*_LOOKS_SECONDS, 0.0):
        if done():
            return True
        time.sleep(seconds)
    return False


def settle(root: str, claims: Collection[Claim]) -> None:
    """Let the slices give away no more than the guests of `claims` have; under the claims' lock. Raises HostError."""
    wanted = frozenset[int]().union(*(claim.isolated for claim in claims))
    try:
        with _slices(root) as slices:
            for place, granted in reversed(slices.items()):
                if not granted <= wanted:
                    _grant(place, granted & wanted)
    except OSError:
        pass  # no guest is left


def join(root: str, claim: Claim, tid: int, cpus: frozenset[int]) -> None:
    """Have `tid`, which is to run on `cpus`, in the group that has these. One that has ended is nowhere.

    What a vCPU thread gives birth to is born inside the partition. Raises HostError.
    """
    place = _vcpu if cpus <= claim.isolated else _qemu
    try:
        inside = files.read(f"{root}/proc/{tid}/cgroup").rpartition("::")[2]
    except OSError:
        return
    wanted = place("", claim).removeprefix("/sys/fs/cgroup")
    if inside == wanted or not inside.startswith(f"{cgroup.path(claim)}/{cgroup.QEMU}"):
        return
    try:
        files.write_attribute(f"{place(root, claim)}/cgroup.threads", str(tid))
    except HostError:
        if os.path.exists(f"{root}/proc/{tid}"):
            raise


def visit(root: str, claim: Claim, pid: int) -> None:
    """Have the process `pid`, which has one thread, where the vCPU threads are. Raises HostError."""
    files.write_attribute(f"{_qemu(root, claim)}/cgroup.procs", str(pid))
    files.write_attribute(f"{_vcpu(root, claim)}/cgroup.threads", str(pid))


def amiss(root: str, claim: Claim) -> str:
    """What is not as it should be about the partition of `claim`, "" while all is, and where the kernel has none."""
    if not kernel.has_partitions():
        return ""
    vcpu = _vcpu(root, claim)
    try:
        found = files.read(f"{vcpu}/{_PARTITION}")
    except OSError:
        return "its control group has no partition"
    if found != _ISOLATED:
        return f"the kernel says {found!r}"
    if (asked := _list(f"{vcpu}/cpuset.cpus")) != claim.isolated:
        return f"the partition is of CPU {cpulist.render(asked or ())}"
    lacking = claim.isolated - (_list(f"{vcpu}/cpuset.cpus.effective") or frozenset()) - _offline(root)
    return f"the partition lacks CPU {cpulist.render(lacking)}" if lacking else ""


def stays_amiss(root: str, claim: Claim) -> str:
    """As `amiss`, of what does not go away by itself: the kernel is a moment behind CPUs that come and go."""
    return "" if _in_time(lambda: not amiss(root, claim)) else amiss(root, claim)


def _offline(root: str) -> frozenset[int]:
    return _list(f"{root}/sys/devices/system/cpu/offline") or frozenset()


def clear(root: str, guest: str) -> None:
    """Remove the group of the vCPUs, empty since QEMU ended: systemd would stumble over it.

    Of a threaded group the kernel does not list the processes, and systemd warns that it could not kill there.
    """
    with contextlib.suppress(OSError):
        os.rmdir(f"{root}/sys/fs/cgroup{cgroup.path_of(guest, True)}/{cgroup.QEMU}/vcpu")


def _list(path: str) -> frozenset[int] | None:
    """The CPUs in the file at `path`; None where there is no such file."""
    try:
        return cpulist.parse(files.read(path))
    except OSError:
        return None
