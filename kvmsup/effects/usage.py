# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much memory a running guest has, and was promised, as the kernel and its claim tell it."""

from __future__ import annotations

from kvmsup.effects import ksm, proc
from kvmsup.model.claim import Claim
from kvmsup.plan.overcommit import Promise


def promise(root: str, claim: Claim, pid: int, size: int) -> Promise:
    """The guest of `claim`, with a memory of `size` bytes, whose QEMU is `pid`."""
    found = proc.of_process(root, pid)
    # Hugepages are no part of it (proc(5), /proc/PID/status, HugetlbPages).
    used = found.get("RssAnon", 0) + found.get("RssShmem", 0)
    hugepages = claim.page_size * sum(claim.pages.values())
    told = ksm.of_process(root, pid)
    return Promise(
        guest=claim.guest,
        size=size,
        hugepages=hugepages,
        used=used,
        swapped=found.get("VmSwap", 0),
        balloonable=max(0, min(used, size) - claim.balloon) if claim.balloon else 0,
        # mlockall() locks QEMU's own memory as well (qemu(1), -overcommit).
        locked=min(found.get("VmLck", 0), size - hugepages),
        merged=told.merged if told else None,
    )
