# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's control group, which systemd owns: only read here."""

from __future__ import annotations

from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.model.guest import slice_of

# Where QEMU is in the unit of an isolated guest, which is divided (effects/partition).
QEMU = "qemu"


def path(claim: Claim) -> str:
    """The control group of the claim's kvm@ unit, as /proc/PID/cgroup has it."""
    return path_of(claim.guest, claim.dedicated)


def path_of(guest: str, dedicated: bool) -> str:
    """That of the kvm@ unit of `guest`, which has CPUs of its own or has not."""
    return f"/kvm.slice/{slice_of(dedicated)}/kvm@{guest}.service"


def directory(root: str, claim: Claim) -> str:
    """Where that group is among the files."""
    return f"{root}/sys/fs/cgroup{path(claim)}"


def processes(root: str, claim: Claim) -> list[int]:
    """The pids in the control group of the claim's kvm@ unit; none where it does not run."""
    unit = directory(root, claim)
    places = (unit, f"{unit}/{QEMU}") if claim.isolate else (unit,)
    return [pid for place in places for pid in _in(place)]


def _in(place: str) -> list[int]:
    try:
        return [int(pid) for pid in files.read(f"{place}/cgroup.procs").split()]
    except (OSError, ValueError):  # below another root there may be anything
        return []


def has_cpuset(root: str) -> bool:
    """Whether this host's control groups (version 2) can keep processes off CPUs."""
    try:
        return "cpuset" in files.read(f"{root}/sys/fs/cgroup/cgroup.controllers").split()
    except OSError:
        return False


def check_slice(root: str, pid: int, claim: Claim) -> None:
    """Raises HostError when somebody's drop-in has put the guest, whose QEMU is `pid`, into another slice."""
    try:
        # 0::PATH (cgroups(7)); version 1 has other lines beside it.
        lines = files.read(f"{root}/proc/{pid}/cgroup").splitlines()
    except OSError:
        return
    found = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    if found.endswith(f"/kvm@{claim.guest}.service") and found != path(claim):
        where, ours = found.split("/")[-2] or "the root slice", slice_of(claim.dedicated)
        raise HostError(
            f"kvm@{claim.guest} runs in {where} instead of {ours}, which keeps guests off each other's CPUs",
            f"take Slice= out of its drop-ins (systemctl cat kvm@{claim.guest}); {ours} may have limits",
        )
