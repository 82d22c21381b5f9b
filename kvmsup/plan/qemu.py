# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest → QEMU's command line, one option after the other; pure.

An option's value is a list of name=value pairs, in which QEMU reads a doubled comma as a comma (qemu(1), "-drive
file="). `props` doubles them in every value, so that none can become another property.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from kvmsup import cpulist, sizes
from kvmsup.model import vsock
from kvmsup.model.guest import Guest
from kvmsup.plan import disks, firstboot, nets, plugs, ports
from kvmsup.plan.paths import ENDED, seed, socket
from kvmsup.plan.unitfile import Part, Variable, Word

# What setup has found out about the host.
FIRMWARE, AIO = Variable("KVMSUP_FIRMWARE"), Variable("KVMSUP_AIO")

# A QMP monitor serves one client at a time and lets the next one hang, so each kind of client has its own.
MONITORS = ("control", "supervisor", "admin")

Option = tuple[Word, ...]

# Of cores and threads, each of which a byte counts, and 255 says that it does not (DMTF DSP0134, 7.5).
_MOST_IN_SMBIOS_2 = 254


def props(head: str, **values: str | int | Variable) -> Word:
    """`head,name=value,…`; an underscore in a name stands for a dash."""
    parts: list[Part] = [head.replace(",", ",,")]
    for name, value in values.items():
        parts.append(f",{name.replace('_', '-')}=")
        parts.append(value if isinstance(value, Variable) else str(value).replace(",", ",,"))
    return parts


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
    yield from _ends(guest)
    yield (["-device"], ["virtio-rng-pci"])
    if guest.memory.balloon:
        # deflate-on-oom: a guest that would kill a program takes memory out of the balloon instead.
        balloon = props("virtio-balloon-pci", id="balloon", free_page_reporting="on", deflate_on_oom="on")
        yield (["-device"], balloon)
    yield from _display(guest)
    yield from _inside(guest)
    yield from _disks(guest)
    yield from _first_boot(guest)
    yield from _nets(guest)


def _machine(guest: Guest) -> Iterator[Option]:
    machine, cpu = guest.machine, guest.cpu
    # mem-merge is on by default in QEMU; merging across guests is a side channel and needs consent.
    merge = "on" if guest.memory.ksm else "off"
    backend = {} if guest.cells else {"memory_backend": "mem0"}
    flash = {"pflash0": "firmware.code", "pflash1": "firmware.nvram"} if machine.firmware == "uefi" else {}
    for one in disks.firmware(guest):
        yield (["-blockdev"], _json(one, f'"filename":"{disks.CHOSEN_CODE}"', '"filename":"', FIRMWARE))
    # Machine types before pc-q35-8.1 have tables of SMBIOS 2, and QEMU does not start with larger sockets than fit.
    wide = {"smbios_entry_point_type": 64} if cpu.dies * cpu.cores * cpu.threads > _MOST_IN_SMBIOS_2 else {}
    yield (["-machine"], props(machine.type, **backend, **flash, **wide, mem_merge=merge, usb="off", vmport="off"))
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


def _json(properties: disks.Properties, open_end: str, before: str, variable: Variable) -> Word:
    """A value in JSON, in which `variable` takes the place that `open_end` holds open, after `before`."""
    head, found, tail = json.dumps(properties, separators=(",", ":")).partition(open_end)
    return [f"{head}{before}", variable, f'"{tail}'] if found else [head]


def _disks(guest: Guest) -> Iterator[Option]:
    """The images of the guest's own, and what attach plugs the others into."""
    for option, properties in disks.options(guest):
        if option == "-blockdev":
            yield ([option], _json(properties, f'"aio":"{plugs.CHOSEN_AIO}"', '"aio":"', AIO))
        else:
            driver, *rest = properties.items()
            yield ([option], props(driver[1], **dict(rest)))


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


def _first_boot(guest: Guest) -> Iterator[Option]:
    """Credentials, which a systemd in the guest imports, and the seed, which cloud-init finds by its label."""
    for item in firstboot.items(guest):
        yield (["-fw_cfg"], props(f"name={item.name}", file=item.path))
    if guest.cloud_init:
        values = {"node_name": "seed.iso", "filename": seed(guest.name), "read_only": "on"}
        yield (["-blockdev"], props("file", **values))
        port = ports.port(ports.SEED_SLOTS, 0, "cidata", guest.machine.type)
        if port.id:
            yield (["-device"], props("pcie-root-port", **port.options))
        # A disk, not a CD-ROM: what boots from virtio-blk has its driver. Firmware finds nothing to boot on it.
        # With the dot it is the name of no disk that a TOML can give.
        yield (["-device"], props("virtio-blk-pci", drive="seed.iso", serial="cidata", **port.place))


def _inside(guest: Guest) -> Iterator[Option]:
    """The ways on which what runs in the guest talks to the host."""
    if guest.inside.ready:
        yield (["-device"], props("vhost-vsock-pci", id="vsock", guest_cid=vsock.cid(guest.name)))
        # OEM strings of the firmware, from which systemd imports credentials. It is no secret.
        yield (["-smbios"], props("type=11", value=f"io.systemd.credential:{vsock.CREDENTIAL}"))
    if guest.inside.agent:
        path = socket(guest.name, "agent")
        yield (["-chardev"], props("socket", id="agent", path=path, server="on", wait="off"))
        # The name that qemu-ga(8) looks for.
        yield (["-device"], props("virtserialport", chardev="agent", bus="consoles.0", name="org.qemu.guest_agent.0"))


def _nets(guest: Guest) -> Iterator[Option]:
    """The places of all interfaces, and those that need nothing which attach would have to plug in."""
    for net, place in zip(guest.nets, nets.places(guest), strict=True):
        if place.id:
            yield (["-device"], props("pcie-root-port", **place.options))
        if net.kind == "user":
            yield (["-netdev"], props("user", id=nets.id_of(net)))
            yield (["-device"], props(nets.DEVICE, **nets.device(net, place)))


def _monitors(guest: Guest) -> Iterator[Option]:
    for name in MONITORS:
        path = socket(guest.name, f"{name}.qmp")
        yield (["-chardev"], props("socket", id=f"qmp-{name}", path=path, server="on", wait="off"))
        yield (["-mon"], props(f"chardev=qmp-{name}", mode="control"))


def _consoles(guest: Guest) -> Iterator[Option]:
    """One goes to the unit's standard output and so to the journal; the other is interactive, on a socket.

    Without a reader what the guest prints is dropped, it never waits for one (chardev/char-socket.c, tcp_chr_write;
    hw/char/virtio-console.c, flush_buf). A log file of QEMU's would keep it, and grow for as long as the guest likes.
    """
    path = socket(guest.name, "console")
    to_socket = {"ttyS0": guest.screen.serial == "interactive", "hvc0": guest.screen.serial == "journal"}
    ends = {
        console: props("socket", id=console, path=path, server="on", wait="off")
        if on_socket
        else props("stdio", id=console, signal="off")
        for console, on_socket in to_socket.items()
    }
    yield (["-chardev"], ends["ttyS0"])
    yield (["-serial"], ["chardev:ttyS0"])
    yield (["-device"], props("virtio-serial-pci", id="consoles"))
    yield (["-chardev"], ends["hvc0"])
    yield (["-device"], props("virtconsole", chardev="hvc0", bus="consoles.0"))


def _display(guest: Guest) -> Iterator[Option]:
    """A screen, a pointer that is where the viewer's is, and the socket. A keyboard every machine has (i8042).

    Plain VGA is what all firmware, boot loaders and installers draw on. A tablet on USB would need a controller that
    wakes the host up. Their slots are above those that QEMU numbers by itself and below those of plan/ports, so that
    nothing else moves with them.
    """
    if guest.screen.vnc:
        yield (["-device"], props("VGA", id="screen", addr="0f.0"))
        yield (["-device"], props("virtio-tablet-pci", id="tablet", addr="0e.0"))
        yield (["-vnc"], props(f"unix:{socket(guest.name, 'vnc')}"))


def _ends(guest: Guest) -> Iterator[Option]:
    """A kernel that panics says so (pvpanic), which is a failure of QEMU's; why QEMU ended is in a file.

    On the ISA bus, where older kernels look for it too. One line is written, at QEMU's end: all of qemu_log goes to
    the file, and nothing else of it is on.
    """
    yield (["-device"], ["pvpanic"])
    yield (["-action"], ["panic=exit-failure"])
    yield (["-D"], [socket(guest.name, ENDED)])
    yield (["-trace"], ["qemu_system_shutdown_request"])
