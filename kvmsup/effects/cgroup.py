# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's control group, which systemd owns: only read here."""

from __future__ import annotations

from kvmsup.effects import files
from kvmsup.model.claim import Claim


def processes(root: str, claim: Claim) -> list[int]:
    """The pids in the control group of the claim's kvm@ unit; none where it does not run."""
    kind = "dedicated" if claim.dedicated else "shared"
    unit = f"kvm.slice/kvm-{kind}.slice/kvm@{claim.guest}.service"
    try:
        return [int(pid) for pid in files.read(f"{root}/sys/fs/cgroup/{unit}/cgroup.procs").split()]
    except OSError:
        return []
