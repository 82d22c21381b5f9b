# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence between guests: while somebody owns CPUs, the slice of the shared guests may not use them.

Set through systemd, which owns the control groups, and derived from the claims alone. Callers hold the claims' lock.
"""

from __future__ import annotations

from collections.abc import Collection

from kvmsup import cpulist
from kvmsup.effects import allowed, cgroup, files, kernel, sysfs, systemctl
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.model.guest import slice_of

SHARED, DEDICATED = slice_of(False), slice_of(True)


def settle(root: str, claims: Collection[Claim]) -> None:
    """Bring the fence to what `claims` ask for; nothing is done where it is so already. Raises HostError."""
    # Offline ones too: they may come back.
    every = sysfs.present(root)
    wanted = _wanted(every, claims)
    for unit in (SHARED, DEDICATED):
        now = allowed.kept(root, unit)
        if unit in wanted and now != wanted[unit]:
            systemctl.set_property(unit, f"AllowedCPUs={cpulist.render(wanted[unit])}")
        elif unit not in wanted and now is not None:
            # Clearing the property would leave the old mask in place, so the full one goes first.
            systemctl.set_property(unit, f"AllowedCPUs={cpulist.render(every)}")
            allowed.forget(root, unit)
    if not kernel.has_partitions():
        from kvmsup.effects import hostfence  # for older kernels

        hostfence.settle(root, every, frozenset[int]().union(*(claim.isolated for claim in claims)))


def check(root: str, claims: Collection[Claim]) -> None:
    """Raises HostError where `claims` ask for a fence that this host cannot have: systemd would say nothing of it."""
    if len({claim.dedicated for claim in claims}) == 2 and not cgroup.has_cpuset(root):
        what = "without the cpuset controller shared guests cannot be kept off the CPUs that dedicated ones own"
        raise HostError(what, "kvmsup host says what is missing; guests of one kind can run meanwhile")


def check_isolation(root: str) -> None:
    """Raises HostError where control groups keep nobody off any CPU."""
    if not cgroup.has_cpuset(root):
        what = "placement.isolate: without the cpuset controller no CPU can be isolated"
        raise HostError(what, "kvmsup host says what is missing; isolcpus= at boot does without")


def _wanted(every: frozenset[int], claims: Collection[Claim]) -> dict[str, frozenset[int]]:
    """CPUs by slice: a fence where there are guests on both sides of it.

    Before Linux 6.2 enabling the cpuset controller wipes every affinity below (da019032819a). There both slices get
    a mask with the first guest, so that the controller is enabled before anything is pinned.
    """
    left = every - frozenset().union(*(claim.own_cpus for claim in claims))
    if claims and kernel.version() < (6, 2):
        return {SHARED: left, DEDICATED: every}
    return {SHARED: left} if len({claim.dedicated for claim in claims}) == 2 else {}


def current(root: str) -> frozenset[int] | None:
    """The CPUs that the fence leaves to shared guests; None where there is no fence."""
    return allowed.kept(root, SHARED)


def effective(root: str) -> frozenset[int] | None:
    """The CPUs that the kernel lets shared guests run on; None where there are none, or no cpuset for them."""
    try:
        return cpulist.parse(files.read(f"{root}/sys/fs/cgroup/kvm.slice/{SHARED}/cpuset.cpus.effective"))
    except OSError:
        return None
