# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much memory a running guest has, and was promised, as the kernel and its claim tell it."""

from __future__ import annotations

from kvmsup.effects import files
from kvmsup.model.claim import Claim
from kvmsup.plan.overcommit import Promise


def promise(root: str, claim: Claim, pid: int, size: int) -> Promise:
    """The guest of `claim`, with a memory of `size` bytes, whose QEMU is `pid`."""
    found = _status(root, pid)
    # Hugepages are no part of it (proc(5), /proc/PID/status, HugetlbPages).
    used = found.get("RssAnon", 0) + found.get("RssShmem", 0)
    return Promise(
        guest=claim.guest,
        size=size,
        hugepages=claim.page_size * sum(claim.pages.values()),
        used=used,
        swapped=found.get("VmSwap", 0),
        balloonable=max(0, min(used, size) - claim.balloon) if claim.balloon else 0,
    )


def _status(root: str, pid: int) -> dict[str, int]:
    """Bytes by name of the lines of /proc/PID/status that are counted in kB; nothing when it has ended."""
    try:
        lines = [line.split() for line in files.read(f"{root}/proc/{pid}/status").splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3 and words[2] == "kB"}
