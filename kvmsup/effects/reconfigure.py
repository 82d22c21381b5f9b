# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a running QEMU can be told to change, over QMP: its vCPUs (QEMU's docs/system/cpu-hotplug.rst), and merging."""

from __future__ import annotations

from kvmsup.effects import qmp
from kvmsup.errors import QmpError
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

# From the outside in: QEMU numbers vCPUs in this order (hw/i386, x86_possible_cpu_arch_ids).
_LEVELS = ("socket-id", "die-id", "module-id", "core-id", "thread-id")


class Slot(NamedTuple):
    """The place of one vCPU on the guest's board; `there` says whether it is taken."""

    vcpu: int
    driver: str
    props: dict[str, Any]
    there: bool


def slots(talk: qmp.Conversation) -> list[Slot]:
    """The places of all vCPUs by index. Raises QmpError, also where the machine takes none while it runs."""
    try:
        listed = [
            ([int(one["props"].get(level, 0)) for level in _LEVELS], str(one["type"]), one["props"], "qom-path" in one)
            for one in talk.execute("query-hotpluggable-cpus")
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise QmpError("QEMU's list of places for vCPUs is not as its schema says") from None
    listed.sort(key=lambda one: one[0])
    return [Slot(index, driver, props, there) for index, (_, driver, props, there) in enumerate(listed)]


def add(talk: qmp.Conversation, slot: Slot) -> int:
    """Put a vCPU there; returns its thread, which waits while the guest is paused. Raises QmpError."""
    talk.execute("device_add", **{**slot.props, "driver": slot.driver, "id": f"vcpu{slot.vcpu}"})
    tid = qmp.vcpu_threads(talk).get(slot.vcpu)
    if tid is None:
        raise QmpError(f"QEMU has added another vCPU than {slot.vcpu}")
    return tid


def running(talk: qmp.Conversation) -> bool:
    """Whether the guest runs, that is, is not paused. Raises QmpError."""
    answer = talk.execute("query-status")
    return isinstance(answer, dict) and answer.get("running") is True


def set_merging(talk: qmp.Conversation, backend: str, on: bool) -> None:
    """Let KSM merge the memory of `backend`, or no more: then each page becomes its own again. Raises QmpError.

    QEMU tells the kernel at once (backends/hostmem.c, host_memory_backend_set_merge).
    """
    talk.execute("qom-set", path=f"/objects/{backend}", property="merge", value=on)
