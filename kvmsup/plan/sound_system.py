# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges kernel, control groups, systemd, QEMU and the clock."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmsup.model.hostfacts import Facts, Programs
from kvmsup.plan.finding import Finding, fail, ok, unknown, values, warn

_LEAST_KERNEL, _STABLE_KERNEL = (6, 1), (6, 2)
_LEAST_SYSTEMD = (252,)
_LEAST_QEMU = (7, 2)


def judge(facts: Facts, programs: Programs) -> Iterator[Finding]:
    """The area's findings."""
    yield _kernel(facts.system.release)
    yield _cgroup(facts)
    yield _systemd(facts, programs.systemd)
    yield _program("QEMU", programs.qemu, _LEAST_QEMU, "apt install qemu-system-x86")
    if facts.processor.x86:
        yield _clock(facts)


def _version(text: str | None) -> tuple[int, ...]:
    """The first number in `text` that is a version, as 6.12 is of 6.12.38-amd64; empty where there is none."""
    found = re.search(r"\d{1,6}(\.\d{1,6})*", text or "", re.ASCII)
    return tuple(map(int, found[0].split("."))) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _kernel(release: str | None) -> Finding:
    version = _version(release)
    if not version:
        return unknown("kernel", "its release cannot be read")
    newer = "install a newer kernel (Debian 12: linux-image-amd64 of bookworm-backports), then reboot"
    if version[:2] < _LEAST_KERNEL:
        return fail("kernel", f"{release} is older than 6.1", newer)
    if version[:2] < _STABLE_KERNEL:
        # da019032819a, "sched: Enforce user requested affinity".
        told = f"{release}: before 6.2 a change of the cpuset controller undoes pins; kvmsup fences all guests instead"
        return warn("kernel", told, newer)
    return ok("kernel", release or "")


def _cgroup(facts: Facts) -> Finding:
    controllers, line = facts.system.controllers, facts.system.command_line
    unified = "put systemd.unified_cgroup_hierarchy=1 on the kernel's command line, then reboot"
    if controllers is None:
        return fail("cgroup", "version 2 is not at /sys/fs/cgroup", unified)
    if "cpuset" in controllers.split():
        return ok("cgroup", "version 2 with cpuset")
    told = "version 2 without cpuset: guests cannot be kept off the CPUs that others own"
    if any("cpuset" in value.split(",") for value in values(line, "cgroup_disable")):
        return fail("cgroup", told, "take cgroup_disable=cpuset off the kernel's command line, then reboot")
    return fail("cgroup", told, unified)


def _systemd(facts: Facts, told: str | None) -> Finding:
    if not facts.system.booted:
        return fail("systemd", "this host was not booted with it", "boot with init=/usr/lib/systemd/systemd")
    return _program("systemd", told, _LEAST_SYSTEMD, "apt install systemd")


def _program(what: str, told: str | None, least: tuple[int, ...], install: str) -> Finding:
    if told is None:
        return unknown(
            what, "it has not said its version in time: this host is very busy", "kvmsup host, once it is not"
        )
    version = _version(told)
    if not version:
        return fail(what, "it does not run" if not told else f"says {told[:40]!r}", install)
    if version < least:
        return fail(
            what, f"{_dotted(version)} is older than {_dotted(least)}", f"upgrade the distribution, or {install}"
        )
    return ok(what, _dotted(version))


def _clock(facts: Facts) -> Finding:
    """Guests' kvmclock is fast only over the host's TSC (arch/x86/kvm/x86.c, pvclock_update_vm_gtod_copy)."""
    source = facts.system.clocksource
    if source is None:
        return unknown("clock", "the clocksource cannot be read")
    if source == "tsc":
        return ok("clock", "tsc")
    told = f"{source or 'none'}: slower than the TSC, for the host and each guest"
    if "hypervisor" in facts.processor.flags:
        return warn("clock", told, "have the hypervisor above offer an invariant TSC (QEMU: -cpu host,+invtsc)")
    return warn("clock", told, "dmesg | grep -i tsc  # says why; a firmware upgrade is the usual cure")
