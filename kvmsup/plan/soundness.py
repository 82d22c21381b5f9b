# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about the host → findings, by area. Pure, so that hosts nobody has at hand can be judged too."""

from __future__ import annotations

from kvmsup.model.hostfacts import Facts, Programs
from kvmsup.plan import sound_cpus, sound_device, sound_memory, sound_system, sound_virtualisation
from kvmsup.plan.finding import Finding

AREAS = ("virtualisation", "CPUs", "memory", "system")


def findings(facts: Facts, programs: Programs) -> list[Finding]:
    """Everything that can be said, in the order of AREAS."""
    judged = (
        (*sound_virtualisation.judge(facts), *sound_device.judge(facts)),
        sound_cpus.judge(facts),
        sound_memory.judge(facts),
        sound_system.judge(facts, programs),
    )
    return [found._replace(area=area) for area, group in zip(AREAS, judged, strict=True) for found in group]
