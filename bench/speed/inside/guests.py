# SPDX-License-Identifier: LGPL-2.1-or-later
"""One guest in three languages: kvmsup's TOML, libvirt's XML, and QEMU's command line; and the host's CPUs it is on.

The guest halts at its first instruction, so that nothing is measured but what the host does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.cli.run import VIRSH, run
from tests.lab import still

ETC = Path("/etc/kvmsup")
STILL = Path("/var/lib/bench-still")
MACHINE = "pc-q35-7.2"
# A model without a feature that a KVM inside a virtual machine may lack.
_MODEL, _WITHOUT = "kvm64", "pni"
_IOMMU = "<iommu model='intel'><driver intremap='on' eim='on'/></iommu>"


class Shape(NamedTuple):
    """What a guest is made of. `pins` is vCPU → host CPU; with `dedicated` nobody else gets these."""

    memory_mib: int
    pins: Mapping[int, int]
    dedicated: bool = False
    hugepages: bool = False
    accel: str = "kvm"


def cpus() -> list[int]:
    """The host's CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def pinned(vcpus: int) -> dict[int, int]:
    """vCPU → host CPU, in turn over all of them."""
    all_cpus = cpus()
    return {index: all_cpus[index % len(all_cpus)] for index in range(vcpus)}


def toml(shape: Shape) -> str:
    lines = ["[machine]", f'type = "{MACHINE}"', f'kernel = "{STILL}"', f'accel = "{shape.accel}"']
    lines += ["[cpu]", f"vcpus = {len(shape.pins)}", f'model = "{_MODEL}"', f'features = ["-{_WITHOUT}"]']
    lines += ["[placement]", *(['cpus = "dedicated"'] if shape.dedicated else [])]
    lines += ["[placement.vcpu]", *(f'{index} = "{cpu}"' for index, cpu in shape.pins.items())]
    lines += ["[memory]", f'size = "{shape.memory_mib}M"', *(['hugepages = "2M"'] if shape.hugepages else [])]
    return "\n".join(lines) + "\n"


def domain(name: str, shape: Shape) -> str:
    """The same for libvirt, the devices that kvmsup gives every guest included."""
    pins = "".join(f"<vcpupin vcpu='{index}' cpuset='{cpu}'/>" for index, cpu in shape.pins.items())
    emulator = ",".join(map(str, sorted(set(cpus()) - (set(shape.pins.values()) if shape.dedicated else set()))))
    # What libvirt asks of a guest whose vCPUs have numbers that the first interrupt controllers did not know.
    apic, iommu = ("<ioapic driver='qemu'/>", _IOMMU) if len(shape.pins) > 255 else ("", "")
    backing = "<memoryBacking><hugepages/></memoryBacking>" if shape.hugepages else ""
    return f"""<domain type='{"kvm" if shape.accel == "kvm" else "qemu"}'><name>{name}</name>
<memory unit='MiB'>{shape.memory_mib}</memory>{backing}<vcpu>{len(shape.pins)}</vcpu>
<cputune>{pins}<emulatorpin cpuset='{emulator}'/></cputune>
<os><type arch='x86_64' machine='{MACHINE}'>hvm</type><kernel>{STILL}</kernel></os><features><acpi/>{apic}</features>
<cpu mode='custom' match='exact' check='none'><model>{_MODEL}</model>
<feature policy='disable' name='{_WITHOUT}'/></cpu>
<devices>{iommu}<serial type='pty'/><console type='pty'><target type='virtio'/></console><panic model='isa'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<memballoon model='none'/></devices></domain>"""


def in_turn(names: Iterable[str], turn: int) -> list[str]:
    """All of them, each round another one first, so that nobody always follows the same one."""
    found = list(names)
    first = turn % len(found)
    return found[first:] + found[:first]


def define(shapes: Mapping[str, Shape]) -> None:
    """Make all of these known to both."""
    run("systemctl", "stop", "kvmsup-reload.path")  # what is written here is loaded here
    STILL.write_bytes(still.kernel())
    for name, shape in shapes.items():
        (ETC / f"{name}.toml").write_text(toml(shape))
        run(*VIRSH, "define", "/dev/stdin", text=domain(name, shape))
    run("systemctl", "daemon-reload")


def forget(names: Sequence[str]) -> None:
    for name in names:
        (ETC / f"{name}.toml").unlink()
        run(*VIRSH, "undefine", name)
    run("systemctl", "daemon-reload")


def allowed(pid: int) -> dict[str, list[int]]:
    """The CPUs of each vCPU thread of QEMU `pid`, by the thread's name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (name := (task / "comm").read_text().strip()).startswith("CPU "):
            found[name] = sorted(os.sched_getaffinity(int(task.name)))
    return found


def check(pid: int, shape: Shape) -> None:
    """Raises RuntimeError when a vCPU is not where it is wanted."""
    wanted = {
        f"CPU {index}/KVM" if shape.accel == "kvm" else f"CPU {index}/TCG": [cpu] for index, cpu in shape.pins.items()
    }
    if (found := allowed(pid)) != wanted:
        raise RuntimeError(f"wanted {wanted}, found {found}")
