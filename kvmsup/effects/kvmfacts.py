# SPDX-License-Identifier: LGPL-2.1-or-later
"""What there is of KVM on this host, read from the kernel's files and asked of /dev/kvm. Nothing is changed."""

from __future__ import annotations

import fcntl
import os
import re
import stat

from kvmsup.effects import files
from kvmsup.effects.kvm import cpuinfo
from kvmsup.model.hostfacts import Device, Kvm, Probe, Processor

# include/uapi/linux/kvm.h
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
API_VERSION = 12

_MODULES = ("kvm", "kvm_intel", "kvm_amd")
_RIVALS = ("vboxdrv", "vmmon")

# arch/x86/include/asm/msr-index.h: the register, its bits that say "off", and what they are then.
_MSR = {
    "vmx": (0x3A, 0b101, 0b001),  # IA32_FEATURE_CONTROL: locked, and no VMX outside SMX
    "svm": (0xC0010114, 0b10000, 0b10000),  # VM_CR: SVMDIS
}
_LOG_MOST = 16 << 20


def processor(root: str) -> Processor:
    """The first CPU; of what cannot be read every field is empty."""
    told = cpuinfo(root)
    flags = f"{told.get('flags', '')} {told.get('vmx flags', '')}".split()
    arch = text(f"{root}/proc/sys/kernel/arch") or ""
    return Processor(arch, told.get("vendor_id", ""), told.get("model name", ""), frozenset(flags))


def kvm(root: str, cpu: Processor) -> Kvm:
    """Everything about KVM."""
    parameters = {module: _parameters(root, module) for module in _MODULES if os.path.isdir(_module(root, module))}
    # Looked at first: making a machine is an event, at which udev sets the device's group and mode anew.
    device = _device(root)
    # Opening a device node without a driver has the kernel load one (drivers/char/misc.c): not from here.
    probe = _probe(f"{root}/dev/kvm") if parameters else None
    return Kvm(
        parameters=parameters,
        device=device,
        group=_groups(root).get("kvm"),
        probe=probe,
        allowed=_allowed(root, cpu),
        log=() if probe and probe.works else _log(f"{root}/dev/kmsg"),
        rivals=tuple(rival for rival in _RIVALS if os.path.isdir(_module(root, rival))),
        iommus=tuple(listed(f"{root}/sys/class/iommu") or ()),
        tables=_tables(root),
    )


def text(path: str) -> str | None:
    """The text of a file of the kernel, None where it cannot be read."""
    try:
        return files.read(path)
    except OSError:
        return None


def listed(path: str) -> list[str] | None:
    """The names in a directory, sorted; None where it cannot be read."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return None


def _module(root: str, name: str) -> str:
    return f"{root}/sys/module/{name}"


def _parameters(root: str, module: str) -> dict[str, str]:
    directory = f"{_module(root, module)}/parameters"
    told = {name: text(f"{directory}/{name}") for name in listed(directory) or ()}
    return {name: value for name, value in told.items() if value is not None}


def _device(root: str) -> Device | None:
    try:
        found = os.stat(f"{root}/dev/kvm")
    except OSError:
        return None
    names = {gid: name for name, gid in _groups(root).items()}
    mode = stat.S_IMODE(found.st_mode)
    return Device(stat.S_ISCHR(found.st_mode), mode, found.st_gid, names.get(found.st_gid, ""))


def _groups(root: str) -> dict[str, int]:
    """Gids by name (group(5)); a device's group is always a local one, as udev has to know it at boot."""
    lines = re.findall(r"^([^:\n]+):[^:\n]*:(\d{1,10}):", text(f"{root}/etc/group") or "", re.ASCII | re.MULTILINE)
    return {name: int(gid) for name, gid in lines}


def _probe(path: str) -> Probe:
    """Ask for a machine and let it go again: only that takes VT-x or SVM into use."""
    version, step = 0, "open"
    try:
        device = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Probe(step, error.errno or 0, version)
    try:
        step = "version"
        version = fcntl.ioctl(device, _KVM_GET_API_VERSION, 0)
        if version != API_VERSION:
            return Probe(step, 0, version)
        step = "create"
        os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
    except OSError as error:
        return Probe(step, error.errno or 0, version)
    finally:
        os.close(device)
    return Probe("", 0, version)


def _allowed(root: str, cpu: Processor) -> bool | None:
    """By the MSR of the CPU's kind, through the msr module and as root; None where it cannot be read."""
    kind = "svm" if "svm" in cpu.flags or cpu.vendor in ("AuthenticAMD", "HygonGenuine") else "vmx"
    register, mask, off = _MSR[kind]
    try:
        descriptor = os.open(f"{root}/dev/cpu/0/msr", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        value = os.pread(descriptor, 8, register)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return int.from_bytes(value, "little") & mask != off if len(value) == 8 else None


def _log(path: str) -> tuple[str, ...] | None:
    """Lines of the kernel's log about KVM (Documentation/ABI/testing/dev-kmsg: one record a read)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        records = b"".join(_records(descriptor)).decode(errors="replace")
    finally:
        os.close(descriptor)
    lines = (line.partition(";")[2] or line for line in records.splitlines())
    return tuple(line for line in lines if any(word in line.lower() for word in ("kvm", "vmx", "svm")))


def _records(descriptor: int) -> list[bytes]:
    found: list[bytes] = []
    read = 0
    while read < _LOG_MOST:
        try:
            record = os.read(descriptor, 8192)
        except BrokenPipeError:  # the next record was overwritten; the one after it comes now
            continue
        except OSError:  # EAGAIN: that was the last
            break
        if not record:
            break
        found.append(record)
        read += len(record)
    return found


def _tables(root: str) -> frozenset[str] | None:
    names = listed(f"{root}/sys/firmware/acpi/tables")
    return None if names is None else frozenset(names)
