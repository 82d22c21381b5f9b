# SPDX-License-Identifier: LGPL-2.1-or-later
"""A clean stop of a Linux that honours the power button: `systemctl stop` beside `virsh shutdown` and waiting for it.

python3 -m bench.speed.inside.stops ROUNDS [kvm|tcg]

tcg, the default, is for where KVM cannot run Linux: most of a stop is then the guest's own work, the same for both.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from bench.cli.run import VIRSH, run
from bench.speed.inside.guests import ETC, MACHINE, in_turn
from bench.speed.inside.peers import Kvmsup, Libvirt

NAME = "stops"
BUILD = Path(__file__).resolve().parents[3] / "etc/demo/build-initramfs"
INITRAMFS = Path("/var/lib/bench-demo/initramfs")
SERIAL = Path("/var/log/libvirt/qemu/bench-serial.log")
_READY = "demo: ready"
_CMDLINE = "console=ttyS0 quiet panic=-1"
_MODEL, _VCPUS, _MEMORY_MIB = "qemu64", 2, 192
_BOOT_SECONDS, _STOP_SECONDS = 400.0, 100.0
# From its last words until it listens to the power button: libvirt presses it once.
_SETTLE_SECONDS = 4.0
_POLL_SECONDS = 0.01


def measure(rounds: int, accel: str) -> dict[str, object]:
    """By peer, each round's milliseconds until QEMU was gone and until the administrator is told so."""
    run(str(BUILD), str(INITRAMFS))
    run("systemctl", "stop", "kvmsup-reload.path")  # what is written here is loaded here
    (ETC / f"{NAME}.toml").write_text(toml(accel))
    run(*VIRSH, "define", "/dev/stdin", text=domain(accel))
    kvmsup, libvirt = Kvmsup(), Libvirt()  # which reloads systemd
    stops = {"kvmsup": stop_by_kvmsup, "libvirt": stop_by_libvirt}
    found: dict[str, list[dict[str, float]]] = {who: [] for who in stops}
    for turn in range(rounds):
        SERIAL.unlink(missing_ok=True)
        kvmsup.start(NAME)
        libvirt.start(NAME)
        _wait_until_ready()
        for who in in_turn(stops, turn):
            pid = (kvmsup if who == "kvmsup" else libvirt).pid(NAME)
            found[who].append(stops[who](pid))
    (ETC / f"{NAME}.toml").unlink()
    run(*VIRSH, "undefine", NAME)
    run("systemctl", "daemon-reload")
    return {"accel": accel, "stops": found}


def toml(accel: str) -> str:
    return f"""[machine]
type = "{MACHINE}"
kernel = "/vmlinuz"
initrd = "{INITRAMFS}"
cmdline = "{_CMDLINE}"
accel = "{accel}"
[cpu]
model = "{_MODEL}"
vcpus = {_VCPUS}
[memory]
size = "{_MEMORY_MIB}M"
"""


def domain(accel: str) -> str:
    """The same for libvirt; its serial port's words go to a file, as kvmsup's go to the journal."""
    kernel = os.path.realpath("/vmlinuz")
    return f"""<domain type='{"kvm" if accel == "kvm" else "qemu"}'><name>{NAME}</name>
<memory unit='MiB'>{_MEMORY_MIB}</memory><vcpu>{_VCPUS}</vcpu>
<os><type arch='x86_64' machine='{MACHINE}'>hvm</type><kernel>{kernel}</kernel><initrd>{INITRAMFS}</initrd>
<cmdline>{_CMDLINE}</cmdline></os><features><acpi/></features>
<cpu mode='custom' match='exact' check='none'><model>{_MODEL}</model></cpu><on_poweroff>destroy</on_poweroff>
<devices><serial type='file'><source path='{SERIAL}'/></serial>
<console type='pty'><target type='virtio'/></console><panic model='isa'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><memballoon model='none'/></devices>
</domain>"""


def _wait_until_ready() -> None:
    """Both guests have come up and listen to their power buttons. Raises RuntimeError."""
    until = time.monotonic() + _BOOT_SECONDS
    while not (_READY in _journal() and _READY in _serial()):
        if time.monotonic() > until:
            raise RuntimeError(f"not up: {_journal()[-2000:]}\n{_serial()[-2000:]}")
        time.sleep(0.5)
    time.sleep(_SETTLE_SECONDS)


def _journal() -> str:
    """What kvmsup's guest has printed since this start."""
    invocation = run("systemctl", "show", "-P", "InvocationID", f"kvm@{NAME}").strip()
    return run("journalctl", "--no-pager", "--all", "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}")


def _serial() -> str:
    return SERIAL.read_text(errors="replace") if SERIAL.exists() else ""


def stop_by_kvmsup(pid: int) -> dict[str, float]:
    """QEMU's `pid` is watched meanwhile. Raises RuntimeError."""
    began = time.perf_counter()
    with subprocess.Popen(["systemctl", "stop", f"kvm@{NAME}"]) as stopping:
        gone = _wait_for_end(pid)
    told = time.perf_counter()
    if stopping.returncode:
        raise RuntimeError("systemctl stop has failed")
    if (result := run("systemctl", "show", "-P", "Result", f"kvm@{NAME}").strip()) != "success":
        raise RuntimeError(f"the guest was not stopped well: {result}")
    return {"gone": 1000 * (gone - began), "told": 1000 * (told - began)}


def stop_by_libvirt(pid: int) -> dict[str, float]:
    """`virsh shutdown` comes back at once: who wants to know when it is over has to ask. Raises RuntimeError."""
    began = time.perf_counter()
    run(*VIRSH, "shutdown", NAME)
    gone = _wait_for_end(pid)
    while run(*VIRSH, "domstate", NAME).strip() != "shut off":
        time.sleep(_POLL_SECONDS)
    return {"gone": 1000 * (gone - began), "told": 1000 * (time.perf_counter() - began)}


def _wait_for_end(pid: int) -> float:
    """When process `pid` ended, as time.perf_counter() has it. Raises RuntimeError when it does not."""
    process = os.pidfd_open(pid)
    try:
        watch = select.poll()
        watch.register(process, select.POLLIN)
        if not watch.poll(1000 * _STOP_SECONDS):
            raise RuntimeError(f"process {pid} goes on after {_STOP_SECONDS:g} s")
        return time.perf_counter()
    finally:
        os.close(process)


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "tcg"), sys.stdout)
