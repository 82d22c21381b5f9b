# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges /dev/kvm, whether KVM works behind it, the IOMMU, and what this host itself runs on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from kvmsup.model.hostfacts import Device, Facts, Probe
from kvmsup.plan.finding import Finding, fail, ok, unknown, warn
from kvmsup.plan.sound_virtualisation import kind_of

_NODE = "mknod -m 0660 /dev/kvm c 10 232 && chgrp kvm /dev/kvm"  # Documentation/admin-guide/devices.txt
_RULE = 'echo \'KERNEL=="kvm", GROUP="kvm", MODE="0660"\' > /etc/udev/rules.d/99-kvmsup.rules'
# Making a machine is an event of the device (virt/kvm/kvm_main.c, kvm_uevent_notify_change), at which udev sets what
# its rules say: so a rule comes first, and what is done by hand comes when no event is left that knows only old ones.
_LOADED = "udevadm control --reload && udevadm settle"
_REMOVAL = {
    "vboxdrv": "modprobe -r vboxnetadp vboxnetflt vboxdrv  # after its machines are shut down",
    "vmmon": "systemctl stop vmware  # after its machines are shut down",
}
_TABLES = {"DMAR": "intel_iommu=on", "IVRS": "amd_iommu=on"}


def judge(facts: Facts) -> Iterator[Finding]:
    """The findings, the device first."""
    yield _device(facts)
    if facts.kvm.device and facts.kvm.device.character:
        yield _works(facts)
    yield _iommu(facts)
    if facts.processor.x86:
        yield _below(facts)


def _device(facts: Facts) -> Finding:
    """kvm@.service runs QEMU as a user of its own, with the group kvm."""
    device = facts.kvm.device
    if device is None:
        return _missing(facts)
    if not device.character:
        return fail("/dev/kvm", "it is no device", f"rm -r /dev/kvm; {_NODE}")
    if device.mode & 0o006 == 0o006:
        return ok("/dev/kvm", f"mode {device.mode:04o}: every user may use it")
    if facts.kvm.group is None:
        fix = f"systemd-sysusers\n{_LOADED}\n{_by_hand()}"
        return fail("/dev/kvm", "this host has no group kvm, which guests open it with", fix)
    wrong = _wrong(device, facts.kvm.group)
    if wrong:
        return fail("/dev/kvm", f"guests may not open it: {wrong}", f"{_RULE}\n{_LOADED}\n{_by_hand()}")
    return ok("/dev/kvm", f"mode {device.mode:04o}, group kvm: guests may open it")


def _by_hand() -> str:
    return "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"


def _wrong(device: Device, group: int) -> str:
    found = []
    if device.gid != group:
        found.append(f"its group is {device.group or device.gid}, not kvm")
    if device.mode & 0o060 != 0o060:
        found.append(f"mode {device.mode:04o} does not let the group read and write")
    return ", and ".join(found)


def _missing(facts: Facts) -> Finding:
    kind = kind_of(facts)
    if facts.processor.x86 and not kind:
        return fail("/dev/kvm", "not there: it comes with VT-x or SVM", "as for the CPU")
    if facts.kvm.parameters and (not kind or kind.module in facts.kvm.parameters):
        return fail("/dev/kvm", "not there, although the module is loaded", _NODE)
    if kind:
        return warn("/dev/kvm", f"not there: it comes with {kind.module}", f"modprobe {kind.module}")
    return fail("/dev/kvm", "not there: this kernel has no KVM, or the firmware keeps it", "dmesg | grep -i kvm")


def _works(facts: Facts) -> Finding:
    probe = facts.kvm.probe
    if probe is None:
        return unknown("KVM", "not tried: no module of KVM is loaded")
    works = ok("KVM", f"works: API {probe.version}, a machine could be made")
    if probe.works:
        return works
    if probe.failed == "open":
        return _opened(probe)
    if probe.failed == "version" or not probe.errno:
        told = f"/dev/kvm speaks API {probe.version}, not 12" if probe.version else "/dev/kvm is not KVM's"
        return fail("KVM", told, "ls -l /dev/kvm should say 10, 232; if it does, boot a kernel of the distribution")
    if probe.errno == errno.EINVAL and not facts.processor.x86:
        # Elsewhere type 0 asks for sizes that not each CPU has (Documentation/virt/kvm/api.rst, KVM_CREATE_VM).
        return ok("KVM", f"answers: API {probe.version}")
    return _no_machine(facts, probe)


def _opened(probe: Probe) -> Finding:
    if probe.errno in (errno.EACCES, errno.EPERM):
        return unknown("KVM", "whether it works is for root and the group kvm to try", "run kvmsup host as root")
    return fail("KVM", f"/dev/kvm cannot be opened: {os.strerror(probe.errno)}", "dmesg | grep -i kvm")


def _no_machine(facts: Facts, probe: Probe) -> Finding:
    kind = kind_of(facts)
    if probe.errno == errno.EBUSY:
        rivals = facts.kvm.rivals
        holder = f"another hypervisor ({', '.join(rivals)})" if rivals else "another hypervisor"
        fixes = [_REMOVAL[rival] for rival in rivals] or ["shut down the machines of VirtualBox, VMware or their like"]
        return fail(
            "KVM", f"{holder} holds {kind.name if kind else 'the CPU'}: KVM can make no machine", "\n".join(fixes)
        )
    return fail("KVM", f"it can make no machine: {os.strerror(probe.errno)}", "dmesg | grep -i kvm")


def _iommu(facts: Facts) -> Finding:
    """Only guests that are given PCI devices need one; one that lies idle is worth a word."""
    units, tables = facts.kvm.iommus, facts.kvm.tables
    if units:
        return ok("IOMMU", f"in use: {', '.join(units[:4])}{' and more' if len(units) > 4 else ''}")
    idle = next((option for table, option in _TABLES.items() if table in (tables or ())), "")
    if idle:
        fix = f"add to the kernel's command line, then reboot: {idle} iommu=pt"
        return warn("IOMMU", "there is one and it is not in use: no PCI device can be given to a guest", fix)
    if tables is None and facts.processor.x86:
        return unknown("IOMMU", "none is in use; what the firmware has cannot be read")
    return ok("IOMMU", "none; only guests that are given PCI devices need one")


def _below(facts: Facts) -> Finding:
    if "hypervisor" not in facts.processor.flags:
        return (
            ok("hypervisor", "none below: this host is the machine itself") if facts.processor.flags else _no_flags()
        )
    maker = f" ({facts.system.vendor})" if facts.system.vendor else ""
    told = f"this host is itself a guest{maker}: CPUs are only as dedicated as its own vCPUs are"
    return warn("hypervisor", told, "on the host above, give this one dedicated CPUs and locked memory")


def _no_flags() -> Finding:
    return unknown("hypervisor", "/proc/cpuinfo tells of no flags")
