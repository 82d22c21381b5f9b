# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence between guests: while somebody owns CPUs, the slice of the shared guests may not use them.

Set through systemd, which owns the control groups, and derived from the claims alone. Callers hold the claims' lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from kvmsup import cpulist
from kvmsup.effects import files, systemctl
from kvmsup.model.claim import Claim

SLICE = "kvm-shared.slice"
# Where `systemctl set-property --runtime` keeps the value (systemd.unit(5), "Unit File Load Path").
_KEPT = f"/run/systemd/system.control/{SLICE}.d/50-AllowedCPUs.conf"


def settle(root: str, online: frozenset[int], claims: Collection[Claim]) -> None:
    """Bring the fence to what `claims` ask for; nothing is done where it is so already. Raises HostError."""
    wanted = online - frozenset().union(*(claim.own_cpus for claim in claims))
    if not _needed(claims):
        if os.path.exists(root + _KEPT):
            # Clearing the property would leave the old mask in place, so the full one goes first.
            systemctl.set_property(SLICE, f"AllowedCPUs={cpulist.render(online)}")
            systemctl.revert(SLICE)
    elif current(root) != wanted:
        systemctl.set_property(SLICE, f"AllowedCPUs={cpulist.render(wanted)}")


def _needed(claims: Collection[Claim]) -> bool:
    """Whether there are guests on both sides.

    Before Linux 6.2 enabling the cpuset controller wipes every affinity (da019032819a); there it is enabled with the
    first guest, before anything is pinned.
    """
    if claims and _kernel() < (6, 2):
        return True
    return len({claim.dedicated for claim in claims}) == 2


def _kernel() -> tuple[int, ...]:
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def current(root: str) -> frozenset[int] | None:
    """The CPUs that the fence leaves to shared guests; None where there is no fence."""
    try:
        text = files.read(root + _KEPT)
    except FileNotFoundError:
        return None
    value = next((line for line in text.splitlines() if line.startswith("AllowedCPUs=")), "=")
    return cpulist.parse(value.partition("=")[2].replace(" ", ","))
