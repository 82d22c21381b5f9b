# SPDX-License-Identifier: LGPL-2.1-or-later
"""/dev/kvm: there, or loaded, or a sentence that says why not."""

from __future__ import annotations

import os

from kvmsup.effects import systemctl
from kvmsup.errors import HostError

_MODULES = {"vmx": ("kvm_intel", "VT-x"), "svm": ("kvm_amd", "SVM")}
_EMULATION = 'accel = "tcg" emulates'


def ensure(root: str) -> None:
    """Load the module where /dev/kvm is missing: at boot a guest may be set up before udev has come to it.

    Raises HostError when there is no KVM to be had.
    """
    device = f"{root}/dev/kvm"
    if os.path.exists(device):
        return
    flag = next((flag for flag in _MODULES if flag in cpuinfo(root).get("flags", "").split()), None)
    if flag is None:
        what = "this CPU shows neither VT-x nor SVM, so no guest can run with accel = kvm"
        hint = f"enable it in the firmware, or nested virtualization in the hypervisor above; {_EMULATION}"
        raise HostError(what, hint)
    module, name = _MODULES[flag]
    try:
        systemctl.start(f"modprobe@{module}.service")
    finally:
        if not os.path.exists(device):
            what = f"this host has no /dev/kvm, although its CPU has {name}, so no guest can run with accel = kvm"
            hint = f"modprobe {module}; if that fails, enable {name} in the firmware; {_EMULATION}"
            raise HostError(what, hint) from None


def cpuinfo(root: str) -> dict[str, str]:
    """The fields of the first CPU in /proc/cpuinfo; nothing where it cannot be read."""
    found: dict[str, str] = {}
    try:
        with open(f"{root}/proc/cpuinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if not line.strip() and found:
                    break
                name, _, value = line.partition(":")
                found[name.strip()] = value.strip()
    except OSError:
        pass
    return found
