# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest → QEMU's command line, one option after the other; pure.

An option's value is a list of name=value pairs, in which QEMU reads a doubled comma as a comma (qemu(1), "-drive
file="). `props` doubles them in every value, so that none can become another property.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup import cpulist, sizes
from kvmsup.model.guest import Guest
from kvmsup.plan.unitfile import Part, Variable, Word

BINARY = "/usr/bin/qemu-system-x86_64"
RUNTIME = "/run/kvmsup/guests"

# A QMP monitor serves one client at a time and lets the next one hang, so each kind of client has its own.
MONITORS = ("control", "supervisor", "admin")

Option = tuple[Word, ...]


def props(head: str, **values: str | int | Variable) -> Word:
    """`head,name=value,…`; an underscore in a name stands for a dash."""
    parts: list[Part] = [head.replace(",", ",,")]
    for name, value in values.items():
        parts.append(f",{name.replace('_', '-')}=")
        parts.append(value if isinstance(value, Variable) else str(value).replace(",", ",,"))
    return parts


def socket(guest: str, name: str) -> str:
    """The path of one of the guest's sockets: a monitor, or its console."""
    return f"{RUNTIME}/{guest}/{name}"


def options(guest: Guest) -> Iterator[Option]:
    """QEMU's options for `guest`, each with its value where it has one."""
    yield (["-name"], props(f"guest={guest.name}", debug_threads="on"))
    # Paused: every vCPU thread exists and none has run when attach pins them.
    yield (["-S"],)
    yield (["-nodefaults"],)
    yield (["-no-user-config"],)
    yield (["-display"], ["none"])
    yield (
        ["-sandbox"],
        props("on", obsolete="deny", elevateprivileges="deny", spawn="deny", resourcecontrol="deny"),
    )
    yield from _machine(guest)
    yield from _memory(guest)
    for iothread in guest.iothreads:
        yield (["-object"], props("iothread", id=iothread.name))
    yield from _monitors(guest)
    yield from _consoles(guest)
    yield (["-device"], ["virtio-rng-pci"])
    if guest.memory.balloon:
        # deflate-on-oom: a guest that would kill a program takes memory out of the balloon instead.
        balloon = props("virtio-balloon-pci", id="balloon", free_page_reporting="on", deflate_on_oom="on")
        yield (["-device"], balloon)


def _machine(guest: Guest) -> Iterator[Option]:
    machine, cpu = guest.machine, guest.cpu
    # mem-merge is on by default in QEMU; merging across guests is a side channel and needs consent.
    merge = "on" if guest.memory.ksm else "off"
    backend = {} if guest.cells else {"memory_backend": "mem0"}
    yield (["-machine"], props(machine.type, **backend, mem_merge=merge, usb="off", vmport="off"))
    if machine.accel == "tcg":
        # MemoryDenyWriteExecute= forbids a mapping that is both; split-wx maps the code twice.
        yield (["-accel"], props("tcg", split_wx="on"))
    else:
        yield (["-accel"], ["kvm"])
    # Without enforce QEMU starts a guest that lacks what was asked for, and says so in a warning.
    yield (["-cpu"], [",".join((cpu.model, *cpu.features, "enforce=on"))])
    shape = {"sockets": cpu.sockets, "dies": cpu.dies, "cores": cpu.cores, "threads": cpu.threads}
    yield (["-smp"], props(f"cpus={cpu.vcpus}", maxcpus=cpu.maxcpus, **shape))
    if machine.kernel:
        yield (["-kernel"], [machine.kernel])
    if machine.initrd:
        yield (["-initrd"], [machine.initrd])
    if machine.cmdline:
        yield (["-append"], [machine.cmdline])


def _memory(guest: Guest) -> Iterator[Option]:
    memory = guest.memory
    yield (["-m"], props(f"size={memory.size >> 20}M"))
    if not guest.cells:
        yield from _backend(guest, 0, memory.size, guest.cpu.maxcpus, "KVMSUP_HOST_NODES")
    for number, cell in enumerate(guest.cells):
        yield from _backend(guest, number, cell.memory, len(cell.vcpus), f"KVMSUP_CELL_{number}")
        cpus = cpulist.render(cell.vcpus).split(",")
        # One range at a time (qemu(1), -numa).
        node: Word = props("node", nodeid=number, memdev=f"mem{number}")
        yield (["-numa"], [*node, *(f",cpus={part}" for part in cpus)])
    for number, cell in enumerate(guest.cells):
        for other, distance in enumerate(cell.distances):
            if other != number:
                yield (["-numa"], props("dist", src=number, dst=other, val=distance))
    if memory.lock:
        yield (["-overcommit"], props("mem-lock=on"))


def _backend(guest: Guest, number: int, size: int, vcpus: int, nodes: str) -> Iterator[Option]:
    """The memory of the guest, or of one of its nodes, on the host nodes that the claim's variable `nodes` names.

    What has to be there before it runs is filled by a thread for each of its `vcpus`, on their CPUs: elsewhere they
    would be in another guest's way, or all on one housekeeping CPU. There mlockall() would fill what is locked; it
    comes after the backends (seen on QEMU 7.2) and finds all there. QEMU lets a thread context set its affinity before
    the sandbox forbids that to all of QEMU (system/vl.c, object_create_pre_sandbox).
    """
    memory = guest.memory
    values: dict[str, str | int | Variable] = {"id": f"mem{number}", "size": f"{size >> 20}M"}
    if memory.page_size:
        kind = "memory-backend-memfd"
        values |= {
            "hugetlb": "on",
            "hugetlbsize": sizes.render(memory.page_size),
            # Nobody else maps it. A private mapping takes each page once too: the file itself stays empty.
            "share": "off",
        }
    else:
        kind = "memory-backend-ram"
        values |= {"merge": "on" if memory.ksm else "off"}
    if guest.filled:
        fill = f"fill{number}"
        yield (["-object"], props("thread-context", id=fill, cpu_affinity=Variable(f"KVMSUP_FILL_{number}")))
        values |= {"prealloc": "on", "prealloc_threads": vcpus, "prealloc_context": fill}
    if guest.bound:
        values |= {"policy": "bind", "host_nodes": Variable(nodes)}
    yield (["-object"], props(kind, **values))


def _monitors(guest: Guest) -> Iterator[Option]:
    for name in MONITORS:
        path = socket(guest.name, f"{name}.qmp")
        yield (["-chardev"], props("socket", id=f"qmp-{name}", path=path, server="on", wait="off"))
        yield (["-mon"], props(f"chardev=qmp-{name}", mode="control"))


def _consoles(guest: Guest) -> Iterator[Option]:
    """ttyS0 goes to the unit's standard output and so to the journal; hvc0 is the interactive one."""
    yield (["-chardev"], props("stdio", id="ttyS0", signal="off"))
    yield (["-serial"], ["chardev:ttyS0"])
    yield (["-device"], props("virtio-serial-pci", id="consoles"))
    path = socket(guest.name, "console")
    yield (["-chardev"], props("socket", id="hvc0", path=path, server="on", wait="off"))
    yield (["-device"], props("virtconsole", chardev="hvc0", bus="consoles.0"))
