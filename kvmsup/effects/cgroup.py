# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's control group, which systemd owns: only read here."""

from __future__ import annotations

from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.model.guest import slice_of


def _path(claim: Claim) -> str:
    return f"/kvm.slice/{slice_of(claim.dedicated)}/kvm@{claim.guest}.service"


def processes(root: str, claim: Claim) -> list[int]:
    """The pids in the control group of the claim's kvm@ unit; none where it does not run."""
    try:
        return [int(pid) for pid in files.read(f"{root}/sys/fs/cgroup{_path(claim)}/cgroup.procs").split()]
    except OSError:
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
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    if path.endswith(f"/kvm@{claim.guest}.service") and path != _path(claim):
        where, ours = path.split("/")[-2] or "the root slice", slice_of(claim.dedicated)
        raise HostError(
            f"kvm@{claim.guest} runs in {where} instead of {ours}, which keeps guests off each other's CPUs",
            f"take Slice= out of its drop-ins (systemctl cat kvm@{claim.guest}); {ours} may have limits",
        )
