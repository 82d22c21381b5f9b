# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns the question whether this machine's /dev/kvm really boots Linux, and nests; some are too incomplete to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from . import cache, initramfs
from .machine import Rig
from .progress import Progress

_MARKER = "lab-probe-reached-user-space"
_SECONDS = 15.0
# The lab's own guests need KVM in turn, so the processor must offer it there.
_INIT = f"mount -t proc proc /proc\ngrep -qwE 'svm|vmx' /proc/cpuinfo && echo {_MARKER}\npoweroff -f\n"


def kvm_boots(rig: Rig, progress: Progress) -> bool:
    """Whether the rig's kernel reaches user space with /dev/kvm; asked once a boot."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = cache.digest(rig.image.path.name, rig.emulator.path.name, boot)
    return (cache.entry("probe", key, lambda place: _ask(rig, place, progress)) / "accel").read_text() == "kvm"


def _ask(rig: Rig, place: Path, progress: Progress) -> None:
    progress.stage("trying this machine's /dev/kvm")
    accel = "kvm" if _boots(rig) else "tcg"
    progress.stage(f"/dev/kvm {'boots Linux' if accel == 'kvm' else 'does not boot Linux: emulating'}")
    (place / "accel").write_text(accel)


def _boots(rig: Rig) -> bool:
    with tempfile.TemporaryDirectory() as place:
        initrd = Path(place) / "initrd"
        initrd.write_bytes(initramfs.archive(initramfs.with_busybox(rig.image.busybox, _INIT)))
        share = rig.emulator.emulator / "share"
        command = ["setpriv", "--pdeathsig", "KILL", *rig.program("qemu-system-x86_64")]
        command += [
            "-L",
            str(share / "qemu"),
            "-L",
            str(share / "seabios"),
            "-nodefaults",
            "-no-user-config",
        ]
        command += ["-display", "none", "-no-reboot", "-machine", "q35", "-accel", "kvm", "-cpu", "host"]
        command += ["-smp", "2", "-m", "512", "-serial", "stdio", "-kernel", str(rig.image.kernel)]
        command += ["-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            return _MARKER.encode() in (error.stdout or b"")
    return _MARKER.encode() in done.stdout
