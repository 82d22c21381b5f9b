# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML → records: every key of a guest's file and of the host's file is read here, and nowhere else."""

from __future__ import annotations

import re

from kvmsup import sizes
from kvmsup.errors import ConfigError
from kvmsup.model import cells, disks, firstboot, hostpaths, inside, nets, wishes
from kvmsup.model.guest import Balloon, Cpu, Guest, Host, Machine, Memory, Screen
from kvmsup.model.table import Document, Table
from kvmsup.model.topology import Topology
from kvmsup.records import NamedTuple

# Every key there is. A test holds this against the goldens and the man pages.
GUEST_KEYS = {
    "": (
        "description",
        "machine",
        "cpu",
        "placement",
        "memory",
        "iothread",
        "numa",
        "guest",
        "console",
        "display",
        "disk",
        "net",
        "credentials",
        "cloud-init",
    ),
    "machine": ("type", "firmware", "accel", "kernel", "initrd", "cmdline"),
    "cpu": ("model", "features", "vcpus", "maxcpus", "sockets", "dies", "cores", "threads"),
    "placement": ("cpus", "smt", "nodes", "emulator", "scheduler", "core-scheduling", "isolate", "vcpu"),
    "memory": ("size", "hugepages", "lock", "ksm", "balloon"),
    "memory.balloon": ("min", "auto"),
    "iothread": (),
    "iothread.NAME": ("cpus",),
    "numa": (),
    "numa.N": ("vcpus", "memory", "host-node", "distances"),
    "guest": ("ready", "agent"),
    "console": ("serial",),
    "display": ("vnc",),
    "disk": (),
    "disk.NAME": (
        *("path", "format", "size", "base", "base-format", "bus", "read-only"),
        *("iothread", "cache", "aio", "discard", "boot"),
    ),
    "net": (),
    "net.NAME": ("bridge", "macvtap", "tap", "user", "mac", "queues", "boot"),
    "credentials": (),
    "cloud-init": ("user-data", "meta-data", "network-config"),
}
HOST_KEYS = {
    "": ("cpu", "ksm"),
    "cpu": ("housekeeping",),
    "ksm": ("policy",),
}

# No Linux that does anything runs in less.
LEAST_MEMORY = 64 << 20
# No machine type has more, as query-machines of QEMU 10.0 has it (cpu-max).
MOST_VCPUS = 4096
_MOST_BEFORE = (((2, 8), 255), ((8, 1), 288), ((9, 0), 1024))  # versions of q35
# Some more than QEMU 10 knows; they make one word of an argv, which has 128 KiB at the most (MAX_ARG_STRLEN).
MOST_FEATURES = 512
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_FEATURE = r"[+-][A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_ALIAS = ("q35", "pc")


class Read(NamedTuple):
    """A guest's file that is sound; `document` has noted what is legal in it but unwise.

    What is found later, by asking the host, is noted there too, and then placed beside the warnings.
    """

    guest: Guest
    document: Document


def read_guest(name: str, file: str, content: bytes, topology: Topology | None = None) -> Read:
    """The guest called `name` from the bytes of its file, called `file` in messages.

    With `topology`, host CPUs and nodes that this host lacks are errors too.

    Raises ConfigError with every finding.
    """
    document = Document(file, content)
    top = Table(document, (), document.values, GUEST_KEYS[""])
    description = top.text("description", "")
    machine = _machine(_section(top, "machine"))
    cpu = _cpu(_section(top, "cpu"), machine)
    placement = wishes.read(_section(top, "placement"), cpu, topology)
    if cpu.threads > 1 and not placement.dedicated:
        what = "the guest sees SMT siblings, but vCPUs on shared CPUs are none"
        document.note(("cpu", "threads"), what, 'threads = 1, or cpus = "dedicated"', severity="warning")
    memory = _memory(_section(top, "memory"))
    iothreads = wishes.read_iothreads(_section(top, "iothread"), GUEST_KEYS["iothread.NAME"], topology)
    found = cells.read(_section(top, "numa"), GUEST_KEYS["numa.N"], cpu, memory, topology)
    credentials = firstboot.read_credentials(_section(top, "credentials"))
    cloud_init = firstboot.read_cloud_init(_section(top, "cloud-init")) if "cloud-init" in top else None
    wired = nets.read(_section(top, "net"), GUEST_KEYS["net.NAME"], name, cpu, pcie=machine.pcie)
    images = disks.read(_section(top, "disk"), GUEST_KEYS["disk.NAME"], iothreads)
    disks.check_boot(top, images, wired, machine)
    guest = Guest(
        name,
        description,
        machine,
        cpu,
        placement,
        memory,
        iothreads,
        found,
        inside=inside.read(_section(top, "guest")),
        screen=_screen(_section(top, "console"), _section(top, "display")),
        nets=wired,
        disks=images,
        credentials=credentials,
        cloud_init=cloud_init,
    )
    _check_sound(document)
    return Read(guest, document)


def read_host(file: str, content: bytes, topology: Topology | None = None) -> Host:
    """The host's file from its bytes; no bytes are a file without keys.

    Raises ConfigError with every finding.
    """
    document = Document(file, content)
    top = Table(document, (), document.values, HOST_KEYS[""])
    cpu = top.table("cpu", HOST_KEYS["cpu"])
    housekeeping = cpu.cpus("housekeeping", '"0-1"')
    if topology and housekeeping:
        wishes.check_on_host(cpu, "housekeeping", housekeeping, topology)
    ksm = top.table("ksm", HOST_KEYS["ksm"]).choice("policy", ("pressure", "always", "never"), "pressure")
    _check_sound(document)
    return Host(housekeeping, ksm)


def _section(top: Table, key: str) -> Table:
    return top.table(key, GUEST_KEYS[key])


def _check_sound(document: Document) -> None:
    """Raises ConfigError. Of warnings alone no place is looked for: a start does not tell them."""
    if any(problem.severity == "error" for problem in document.problems):
        raise ConfigError(document.diagnostics())


def _machine(table: Table) -> Machine:
    kind = _word(table, "type", "q35")
    if kind in _ALIAS:
        hint = 'name a version, such as type = "pc-q35-7.2" (all of them: qemu-system-x86_64 -machine help)'
        what = f"{kind} is an alias: the next QEMU upgrade changes the guest's hardware"
        table.note("type", what, hint, severity="warning")
    accel = table.choice("accel", ("kvm", "tcg"), "kvm")
    kernel, initrd = _path(table, "kernel"), _path(table, "initrd")
    cmdline = table.text("cmdline", "")
    for key in ("initrd", "cmdline"):
        if key in table and "kernel" not in table:
            table.note(key, "there is no kernel for it", 'add kernel = "/boot/vmlinuz-…"', at_key=True)
    return Machine(kind, accel, kernel, initrd, cmdline, table.choice("firmware", ("bios", "uefi"), "bios"))


def _word(table: Table, key: str, default: str) -> str:
    value = table.text(key, default)
    if not re.fullmatch(_WORD, value):
        table.note(key, f'"{value}" is not a name', "letters, digits, and inside also . _ and -")
        return default
    return value


def _path(table: Table, key: str) -> str:
    value = table.text(key, "/")
    if not value.startswith("/"):
        table.note(key, f'"{value}" is not an absolute path', "start it with /")
    elif why := hostpaths.unshowable(value):
        table.note(key, *why)
    return value if key in table else ""


def _cpu(table: Table, machine: Machine) -> Cpu:
    model = _word(table, "model", "host" if machine.accel == "kvm" else "max")
    if model == "host" and machine.accel == "tcg":
        table.note("model", "an emulated CPU is not the host's", 'model = "max" is all that QEMU emulates')
    features = _features(table)
    vcpus = table.integer("vcpus", 1, MOST_VCPUS)
    maxcpus = table.integer("maxcpus", 1, MOST_VCPUS)
    shape = {key: table.integer(key, 1, MOST_VCPUS) for key in ("sockets", "dies", "cores", "threads")}
    found = Cpu(model, features, *_topology(table, vcpus, maxcpus, shape))
    if found.maxcpus > (most := most_vcpus(machine.type)):
        what = f"{found.maxcpus} vCPUs are more than a {machine.type} has"
        keys = ("maxcpus", "cores", *(["vcpus"] if found.vcpus == found.maxcpus else []), "threads", "sockets", "dies")
        key = next(key for key in keys if key in table)
        table.note(key, what, f"{most} at the most; pc-q35-9.0 and later have {MOST_VCPUS}")
    return found


def most_vcpus(machine: str) -> int:
    """How many a machine of that type has at the most, whatever KVM can do: cpu-max in query-machines of QEMU 10.0.

    A distribution's own types, and what is not known here, are left to QEMU.
    """
    if re.fullmatch(r"pc(-i440fx-\d+\.\d+)?", machine):
        return 255
    if not (numbers := re.fullmatch(r"pc-q35-(\d+)\.(\d+)(\.\d+)?", machine)):
        return MOST_VCPUS
    version = int(numbers[1]), int(numbers[2])
    return next((most for before, most in _MOST_BEFORE if version < before), MOST_VCPUS)


def _features(table: Table) -> tuple[str, ...]:
    features = table.strings("features")
    seen: dict[str, str] = {}
    sound = frozenset(features)
    if len(features) > MOST_FEATURES:
        table.note("features", f"{len(features)} features", f"{MOST_FEATURES} at the most")
    for index, feature in enumerate(table.values["features"] if features else ()):
        path = (*table.path, "features", index)
        if not isinstance(feature, str) or feature not in sound:
            continue  # which has been noted
        if not re.fullmatch(_FEATURE, feature):
            what = f'"{feature}" is not + or - and a feature'
            table.document.note(path, what, 'features = ["+pdpe1gb", "-svm"]')
            continue
        # QEMU takes an underscore for a dash (target/i386/cpu.c, feat2prop).
        name = feature[1:].replace("_", "-")
        if name in seen:
            what = "is there twice" if seen[name][0] == feature[0] else f'contradicts "{seen[name]}"'
            table.document.note(path, f'"{feature}" {what}', "leave one of them out")
        seen[name] = feature
    return features


def _topology(
    table: Table, vcpus: int | None, maxcpus: int | None, shape: dict[str, int | None]
) -> tuple[int, int, int, int, int, int]:
    """vcpus, maxcpus, sockets, dies, cores and threads, with what was left out derived from the rest.

    Sockets, dies and threads are 1 unless given; cores take up what remains, so that the product is maxcpus.
    """
    sockets, dies, threads = (shape[key] or 1 for key in ("sockets", "dies", "threads"))
    others = sockets * dies * threads
    total = maxcpus or (others * shape["cores"] if shape["cores"] else max(vcpus or 1, others))
    cores = shape["cores"] or max(1, total // others)
    vcpus = vcpus or total
    written = f"sockets {sockets} × dies {dies} × cores {cores} × threads {threads}"
    key = next((key for key in ("maxcpus", "cores", "threads", "sockets", "dies") if key in table), "")
    if total > MOST_VCPUS:
        table.note(key, f"{written} is more than QEMU has", f"{MOST_VCPUS} at the most")
        return 1, 1, 1, 1, 1, 1
    if others * cores == total:
        if vcpus > total:
            hint = f"vcpus = {total}, or a larger topology"
            table.note("vcpus", f"{vcpus} vCPUs do not fit {written} = {total}", hint)
    elif maxcpus or shape["cores"]:
        hint = f"maxcpus = {others * cores}, or leave out what should follow from the rest"
        table.note(key, f"{written} = {others * cores}, but maxcpus = {total}", hint)
    else:
        fits = f"vcpus = {others * cores} or {others * (cores + 1)}, or maxcpus = {others * (cores + 1)} beside it"
        table.note("vcpus", f"{vcpus} vCPUs do not fill cores: {written} = {others * cores}", fits)
    return vcpus, total, sockets, dies, cores, threads


def _screen(console: Table, display: Table) -> Screen:
    serial = console.choice("serial", ("journal", "interactive"), "journal")
    return Screen(serial, display.boolean("vnc", False))


def _memory(table: Table) -> Memory:
    size = table.size("size")
    if "size" not in table:
        table.note("", "size is missing: how much memory has the guest?", 'size = "4G"')
    elif size == 0:
        table.note("size", "a guest cannot run without memory", 'size = "512M"')
    elif size is not None and size % sizes.UNITS["M"]:
        table.note("size", f"{sizes.render(size)} is not a multiple of 1M", 'size = "512M"')
    page_size = sizes.parse(table.choice("hugepages", ("2M", "1G"), "2M")) if "hugepages" in table else 0
    if size and page_size and size % page_size:
        low, high = size // page_size * page_size, (size // page_size + 1) * page_size
        what = f"{sizes.render(size)} is not a multiple of the hugepage size {sizes.render(page_size)}"
        near = " or ".join(f'"{sizes.render(fit)}"' for fit in (low, high) if fit)
        table.note("size", what, f"size = {near}")
    lock, ksm = table.boolean("lock", False), table.boolean("ksm", False)
    if ksm and (page_size or lock):
        why = "hugepages are never merged" if page_size else "locked memory is never merged"
        table.note("ksm", f"has no effect: {why}", "ksm = false", severity="warning")
    balloon = _balloon(table, size, page_size, lock) if "balloon" in table else None
    return Memory(size or 0, page_size, lock, ksm, balloon)


def _balloon(memory: Table, size: int | None, page_size: int, lock: bool) -> Balloon:
    table = memory.table("balloon", GUEST_KEYS["memory.balloon"])
    if page_size or lock:
        kind, key = ("hugepages", "hugepages") if page_size else ("locked memory", "lock")
        what = f"a balloon gives nothing back from {kind}"
        memory.note("balloon", what, f"leave out memory.{key} or [memory.balloon]", at_key=True)
    least, auto = table.size("min"), table.boolean("auto", False)
    if "min" not in table and isinstance(memory.values["balloon"], dict):
        table.note("", "min is missing: how small may the guest be made?", 'min = "1G"')
    elif least is not None and least % sizes.UNITS["M"]:
        table.note("min", f"{sizes.render(least)} is not a multiple of 1M", 'min = "512M"')
    elif least is not None and least < LEAST_MEMORY:
        table.note("min", f"no guest runs in {sizes.render(least)}", f'min = "{sizes.render(LEAST_MEMORY)}" or more')
    elif least is not None and size and least > size:
        table.note("min", f"{sizes.render(least)} is more than memory.size", f'min = "{sizes.render(size)}" or less')
    return Balloon(least or 0, auto)
