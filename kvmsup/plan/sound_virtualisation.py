# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges what the CPU, the firmware and KVM's modules do for guests.

A flag in /proc/cpuinfo says what the CPU can do. Whether KVM does it is what the module's parameter says, which the
module itself turns off where the CPU cannot (arch/x86/kvm/vmx/vmx.c and svm/svm.c, hardware_setup).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmsup.model.hostfacts import Facts
from kvmsup.plan.finding import Finding, fail, number, ok, switch, unknown, values, warn
from kvmsup.records import NamedTuple

OPTIONS = "/etc/modprobe.d/zz-kvmsup.conf"  # sorted last: of two options lines the later one holds (modprobe.d(5))
_FIRMWARE = "in the firmware's set-up (BIOS), turn on {}"
_DISABLED = re.compile(r"(kvm|vmx|svm).*disabled \(?by bios", re.IGNORECASE)


class Kind(NamedTuple):
    """One of x86's two kinds of virtualisation, and how its module calls things."""

    name: str
    flag: str
    module: str
    firmware: str  # as firmware menus call it
    paging: str
    paging_switch: str  # also the CPU's flag
    spin_count: str
    spin_default: int
    spin_flag: str


INTEL = Kind("VT-x", "vmx", "kvm_intel", "Intel Virtualization Technology (VT-x)", "EPT", "ept", "ple_gap", 128, "ple")
AMD = Kind("SVM", "svm", "kvm_amd", "SVM Mode", "NPT", "npt", "pause_filter_count", 3000, "pausefilter")
_AMD_VENDORS = ("AuthenticAMD", "HygonGenuine")


def kind_of(facts: Facts) -> Kind | None:
    """By the module that is loaded, or the CPU's flag; None where there is neither."""
    for kind in (INTEL, AMD):
        if kind.module in facts.kvm.parameters:
            return kind
    return next((kind for kind in (INTEL, AMD) if kind.flag in facts.processor.flags), None)


def judge(facts: Facts) -> Iterator[Finding]:
    """The area's findings but those about the device; elsewhere than on x86 the device is all there is to see."""
    if not facts.processor.x86:
        told = f"{facts.processor.arch or 'this architecture'} shows no flag for it: /dev/kvm alone tells"
        yield ok("CPU", told) if facts.processor.arch else unknown("CPU", told)
        return
    yield _cpu(facts)
    kind = kind_of(facts)
    if not kind:
        return
    yield _firmware(facts, kind)
    yield _module(facts, kind)
    if kind.module in facts.kvm.parameters:
        yield from _parameters(facts, kind)
    else:
        yield unknown(kind.paging, f"can be read when {kind.module} is loaded", f"modprobe {kind.module}")
    if "kvm" in facts.kvm.parameters:
        yield from _common(facts)


def _cpu(facts: Facts) -> Finding:
    cpu = facts.processor
    shown = next((kind for kind in (INTEL, AMD) if kind.flag in cpu.flags), None)
    if shown:
        return ok("CPU", f"{shown.name}, {cpu.model or cpu.vendor or 'a CPU without a name'}")
    if not cpu.flags:
        return unknown("CPU", "/proc/cpuinfo tells of no flags")
    if facts.kvm.probe and facts.kvm.probe.works:
        return unknown("CPU", "neither VT-x nor SVM is shown, and yet KVM works: by other means than those known here")
    wanted = AMD if cpu.vendor in _AMD_VENDORS else INTEL
    if _is_off(facts):
        return fail("CPU", f"{wanted.name} is switched off in the firmware", _FIRMWARE.format(wanted.firmware))
    if "hypervisor" in cpu.flags:
        told = "neither VT-x nor SVM: this host is a guest, and the hypervisor above does not pass it on"
        above = "on the host above: options {} nested=1 in /etc/modprobe.d, and the CPU model host"
        return fail("CPU", told, above.format(wanted.module))
    told = 'neither VT-x nor SVM: only guests with accel = "tcg" run, emulated'
    return fail("CPU", told, f"{_FIRMWARE.format(wanted.firmware)}, or take another CPU")


def _is_off(facts: Facts) -> bool:
    return facts.kvm.allowed is False or any(map(_DISABLED.search, facts.kvm.log or ()))


def _firmware(facts: Facts, kind: Kind) -> Finding:
    if facts.kvm.probe and facts.kvm.probe.works:
        return ok("firmware", f"{kind.name} is on: KVM makes machines with it")
    if _is_off(facts):
        return fail("firmware", f"{kind.name} is switched off", _FIRMWARE.format(kind.firmware))
    if facts.kvm.allowed:
        return ok("firmware", f"{kind.name} is on, by the CPU's register")
    if kind.module in facts.kvm.parameters and facts.kvm.device and facts.kvm.device.character:
        # KVM's modules give up before they make the device where it is off (kvm_is_svm_supported and its like).
        return ok("firmware", f"{kind.name} is on: {kind.module} made its device")
    return unknown("firmware", f"whether {kind.name} is on is for root to read", "modprobe msr; kvmsup host")


def _module(facts: Facts, kind: Kind) -> Finding:
    if kind.module in facts.kvm.parameters:
        return ok("module", f"{kind.module} is loaded")
    told = f"{kind.module} is not loaded; the first guest has it loaded"
    if facts.kvm.rivals:
        told += f", unless {' or '.join(facts.kvm.rivals)} of another hypervisor is in its way"
    return warn("module", told, f"modprobe {kind.module}")


def _parameters(facts: Facts, kind: Kind) -> Iterator[Finding]:
    """What the vendor's module does."""
    shadowed = "guests' page tables are shadowed in software, which is slow"
    yield _wanted(facts, kind, kind.paging, kind.paging_switch, kind.paging_switch, shadowed, severe=True)
    if kind is INTEL:
        flushed = "the TLB is flushed at each entry and exit"
        yield _wanted(facts, kind, "VPID", "vpid", "vpid", flushed)
        emulated = "real mode, and so each guest's firmware, is emulated"
        yield _wanted(facts, kind, "unrestricted guest", "unrestricted_guest", "unrestricted_guest", emulated)
    yield _spinning(facts, kind)
    nested = switch(_parameter(facts, kind.module, "nested"))
    if nested is None:
        yield _unread("nested", kind.module, "nested", facts)
    else:
        with_it = f"a guest with the feature {kind.flag} can run guests"
        yield ok("nested", f"on: {with_it}" if nested else "off: guests cannot run guests")


def _wanted(facts: Facts, kind: Kind, what: str, name: str, flag: str, loss: str, *, severe: bool = False) -> Finding:
    """A switch that should be on; off although the CPU has it, a `severe` one is a failure."""
    on = switch(_parameter(facts, kind.module, name))
    if on is None:
        return _unread(what, kind.module, name, facts)
    if on:
        return ok(what, "in use")
    if flag not in facts.processor.flags:
        above = "have the hypervisor above pass it on" if "hypervisor" in facts.processor.flags else "take a newer CPU"
        return warn(what, f"this CPU shows none: {loss}", above)
    told = f"switched off ({name}=N) although the CPU has it: {loss}"
    return (fail if severe else warn)(what, told, _option(facts, kind, name, 1))


def _spinning(facts: Facts, kind: Kind) -> Finding:
    """A guest that spins for a lock whose holder does not run gives its CPU away: good for shared CPUs only."""
    what, text = "pause exits", _parameter(facts, kind.module, kind.spin_count)
    count = number(text)
    if count is None:
        return _unread(what, kind.module, kind.spin_count, facts)
    if count:
        return ok(what, f"on ({kind.spin_count}={count}): a vCPU that spins makes room for others")
    if kind.spin_flag not in facts.processor.flags:
        return ok(what, "this CPU shows none; only shared guests would gain")
    shared = sorted(name for name, claim in (facts.guests or {}).items() if not claim.dedicated)
    if not shared:
        return ok(what, f"off ({kind.spin_count}=0): right where guests own their CPUs")
    told = f"off ({kind.spin_count}=0) while guests share CPUs: a vCPU that waits for another's lock burns them"
    return warn(what, told, _option(facts, kind, kind.spin_count, kind.spin_default))


def _option(facts: Facts, kind: Kind, name: str, value: int) -> str:
    """How to have the module loaded with `name` as `value`. The command line outdoes every file (modprobe.d(5))."""
    there = values(facts.system.command_line, f"{kind.module}.{name}")
    if there:
        return f"take {kind.module}.{name}={there[-1]} off the kernel's command line, then reboot"
    line = f"options {kind.module} {name}={value}"
    return f"echo '{line}' >> {OPTIONS}\nmodprobe -r {kind.module} && modprobe {kind.module}  # while no guest runs"


def _common(facts: Facts) -> Iterator[Finding]:
    """What the module kvm does on both kinds."""
    yield _nx_huge_pages(facts)
    text = _parameter(facts, "kvm", "halt_poll_ns")
    polled = number(text)
    if polled is None:
        yield _unread("halt polling", "kvm", "halt_poll_ns", facts)
    else:
        told = f"up to {polled / 1000:g} µs before an idle vCPU gives its CPU away"
        yield ok("halt polling", told if polled else "off: an idle vCPU gives its CPU away at once")


def _nx_huge_pages(facts: Facts) -> Finding:
    """Whether guests' large pages are split against itlb_multihit (Documentation/admin-guide/hw-vuln/multihit.rst)."""
    what, path = "nx_huge_pages", "/sys/module/kvm/parameters/nx_huge_pages"
    text = _parameter(facts, "kvm", "nx_huge_pages")
    split = False if text == "never" else switch(text)
    bug = facts.cpus.vulnerabilities.get("itlb_multihit")
    if split is None:
        return _unread(what, "kvm", "nx_huge_pages", facts)
    if bug is None:
        return unknown(what, f"{text}; whether the CPU needs it, the kernel does not tell")
    if bug.startswith("Not affected"):
        told = "on although this CPU does not need it: large pages are split where guests execute"
        return warn(what, told, f"echo auto > {path}") if split else ok(what, "off, and this CPU does not need it")
    if split:
        return ok(what, "on: this CPU needs it against a guest that would hang the host")
    return warn(what, "off on a CPU that a guest can hang (itlb_multihit)", f"echo auto > {path}")


def _parameter(facts: Facts, module: str, name: str) -> str | None:
    return facts.kvm.parameters.get(module, {}).get(name)


def _unread(what: str, module: str, name: str, facts: Facts) -> Finding:
    text = _parameter(facts, module, name)
    path = f"/sys/module/{module}/parameters/{name}"
    return unknown(what, f"{path} cannot be read" if text is None else f"{path} says {text[:20]!r}")
