# SPDX-License-Identifier: LGPL-2.1-or-later
"""The records that a guest's file and the host's file become: frozen, complete, and free of any host's facts."""

from __future__ import annotations

from collections.abc import Iterable

from kvmsup.records import NamedTuple

# kvm-NAME is a user name, and systemd refuses those over 31 characters.
_LONGEST_NAME = 27
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_CHARACTERS = _LETTERS.union("0123456789-")
NAME_RULE = "a lower-case letter, then up to 26 lower-case letters, digits and dashes"


def is_name(text: str) -> bool:
    """Whether `text` can name a guest: it becomes a unit instance, a user and a directory."""
    return text[:1] in _LETTERS and len(text) <= _LONGEST_NAME and _CHARACTERS.issuperset(text)


def units(names: Iterable[str]) -> list[str]:
    """The units of those of `names` that can be a guest's.

    systemctl takes a name such as * for a pattern, and fails for all of them over one that can be no unit's.
    """
    return [f"kvm@{name}.service" for name in names if is_name(name)]


def has_pcie(machine: str) -> bool:
    """Whether machines of that type, as [machine] type has it, have PCIe root ports."""
    return machine == "q35" or machine.startswith("pc-q35-")


def slice_of(dedicated: bool) -> str:
    """The slice that guests with CPUs of their own, or those that share theirs, run in."""
    return "kvm-dedicated.slice" if dedicated else "kvm-shared.slice"


class Machine(NamedTuple):
    """The virtual board and what it boots. Paths are the host's; "" where there is none."""

    type: str
    accel: str  # kvm | tcg
    kernel: str
    initrd: str
    cmdline: str
    firmware: str = "bios"  # bios | uefi

    @property
    def pcie(self) -> bool:
        """Whether the board has PCIe root ports."""
        return has_pcie(self.type)


class Cpu(NamedTuple):
    """What the guest sees: `maxcpus` = sockets × dies × cores × threads, of which `vcpus` are there at start."""

    model: str
    features: tuple[str, ...]  # each "+name" or "-name"
    vcpus: int
    maxcpus: int
    sockets: int
    dies: int
    cores: int
    threads: int


class Scheduler(NamedTuple):
    """A real-time policy of sched(7) for the vCPU threads; `priority` is 1 to 99."""

    policy: str  # fifo | rr
    priority: int


class Wishes(NamedTuple):
    """The [placement] table: what the user decided; None and empty leave it to kvmsup."""

    dedicated: bool
    nodes: frozenset[int] | None  # host nodes
    emulator: frozenset[int] | None  # host CPUs of every thread that is not a vCPU
    scheduler: Scheduler | None
    smt: str  # prefer | require | isolate: what becomes of the siblings of dedicated CPUs
    core_scheduling: bool  # whether only this guest's threads may share a core at one time
    vcpu: tuple[frozenset[int], ...]  # host CPUs by vCPU index; empty, or maxcpus long
    isolate: bool = False  # whether nothing else of the host may run on its own CPUs, as with isolcpus=


class IoThread(NamedTuple):
    """A thread of QEMU for the I/O of devices; `cpus` are host CPUs, None for the emulator's."""

    name: str
    cpus: frozenset[int] | None


class Net(NamedTuple):
    """A network interface of the guest, called `name` in its TOML.

    `over` is the host's bridge, parent or tap, "" for a user network; `link` what the host's end of it is called.
    """

    name: str
    kind: str  # bridge | macvtap | tap | user
    over: str
    link: str
    mac: str  # the guest's: six bytes in lower case
    queues: int
    boot: int  # its place in the order of booting, 1 is first; 0: never


class Disk(NamedTuple):
    """A disk or CD-ROM of the guest, called `name` in its TOML. `size` is in bytes.

    A relative `path` is the name of an image in the guest's own directory, which is made from `size` and `base`.
    """

    name: str
    path: str
    format: str  # raw | qcow2
    size: int  # 0: as large as it is
    base: str  # "": none
    base_format: str
    bus: str  # virtio-blk | virtio-scsi | cdrom
    read_only: bool
    iothread: str  # "": QEMU's main thread
    cache: str  # none | writeback | unsafe
    aio: str  # io_uring | native | threads; "": what the host has
    discard: bool
    boot: int  # its place in the order of booting, 1 is first; 0: after those, in the order of the file


class Cell(NamedTuple):
    """One of the guest's own NUMA nodes: its vCPUs by index, its memory in bytes, and the host node, if chosen.

    `distances` are those to each guest node, in the units of the ACPI SLIT; none: QEMU's, 10 to itself and 20 else.
    """

    vcpus: frozenset[int]
    memory: int
    host_node: int | None
    distances: tuple[int, ...] = ()


class Balloon(NamedTuple):
    """The guest may be made smaller while it runs, down to `least` bytes: by hand, or with `auto` by kvmsup."""

    least: int
    auto: bool


class Memory(NamedTuple):
    """`size` and `page_size` in bytes; page_size 0 means ordinary pages."""

    size: int
    page_size: int
    lock: bool
    ksm: bool
    balloon: Balloon | None = None


# Of the names of credentials, these are what the guest's unit loads for itself: the sources of its seed.
OWN = "kvmsup."


class Credential(NamedTuple):
    """A file that the guest's systemd finds among its credentials as `name`; the path is the host's."""

    name: str
    path: str


class CloudInit(NamedTuple):
    """What cloud-init in the guest finds in its seed: paths of the host, "" for what is empty or derived."""

    user_data: str
    meta_data: str
    network_config: str


class Inside(NamedTuple):
    """What in the guest talks to the host: `ready` is "yes" (READY=1), a target, or "" where it is not asked."""

    ready: str
    agent: bool


class Screen(NamedTuple):
    """Where one sees and reaches the guest: `serial` says where ttyS0 ends, and hvc0 ends where it does not."""

    serial: str  # journal | interactive
    vnc: bool


class Guest(NamedTuple):
    """One guest as its TOML alone decides it."""

    name: str
    description: str
    machine: Machine
    cpu: Cpu
    placement: Wishes
    memory: Memory
    iothreads: tuple[IoThread, ...]
    cells: tuple[Cell, ...]  # none: the guest sees one node
    inside: Inside = Inside("", agent=False)
    screen: Screen = Screen("journal", vnc=False)
    nets: tuple[Net, ...] = ()
    disks: tuple[Disk, ...] = ()
    credentials: tuple[Credential, ...] = ()
    cloud_init: CloudInit | None = None

    @property
    def bound(self) -> bool:
        """Whether its memory is bound to the nodes that setup claims."""
        chosen = self.placement.nodes is not None or bool(self.cells)
        return chosen or self.placement.dedicated or self.memory.page_size > 0

    @property
    def filled(self) -> bool:
        """Whether all of its memory is there before it runs."""
        return self.memory.lock or self.memory.page_size > 0

    @property
    def pages(self) -> int:
        """Hugepages it needs, in units of its page size; 0 with ordinary pages."""
        return self.memory.size // self.memory.page_size if self.memory.page_size else 0


class Host(NamedTuple):
    """/etc/kvmsup.toml: what holds for all guests of this host."""

    housekeeping: frozenset[int] | None  # host CPUs that no guest is given; None: the first core
    ksm: str  # pressure | always | never
