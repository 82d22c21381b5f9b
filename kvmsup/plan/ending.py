# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a guest has ended, in a sentence, where neither systemd nor QEMU says it; pure."""

from __future__ import annotations

from kvmsup.records import NamedTuple

# What QEMU traces when it is about to end, and two of its causes (qapi/run-state.json, ShutdownCause).
_TRACED = "qemu_system_shutdown_request reason="
_GUEST_SHUTDOWN, _GUEST_PANIC = 6, 8


class Told(NamedTuple):
    """`failed`: the unit has failed by it. `catalog`: its name in the journal's catalog."""

    failed: bool
    what: str
    catalog: str


def cause(traced: str) -> int | None:
    """The last cause in what QEMU has `traced`; None where there is none, as after a kill -9."""
    words = traced.rpartition(_TRACED)[2].split() if _TRACED in traced else []
    return int(words[0]) if words and words[0].isdecimal() and len(words[0]) <= 3 else None


def told(result: str, why: int | None) -> Told | None:
    """What to say of an end with systemd's `result` (systemd.exec(5), $SERVICE_RESULT) and QEMU's cause.

    None where systemd's own words and QEMU's say all.
    """
    if result == "oom-kill":
        fix = "the host has too little memory (kvmsup list), or a MemoryMax= of the unit or of a slice is too small"
        what = f"the kernel ran out of memory and killed QEMU: a power cut for the guest\n  hint: {fix}"
        return Told(True, what, "out-of-memory")
    if why == _GUEST_PANIC:
        where = "what it said last is above, where the journal has the console that it said it on (console.serial)"
        return Told(True, f"the guest's kernel has panicked\n  hint: {where}", "panicked")
    if why == _GUEST_SHUTDOWN and result == "success":
        return Told(False, "the guest has shut down", "shut-down")
    return None
