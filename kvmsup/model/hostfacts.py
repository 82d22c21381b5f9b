# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was read of a host, for its soundness to be judged: values of the kernel as it printed them.

Text is None where the file is not there or may not be read: whoever judges says so, and never takes it for good.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvmsup.model.claim import Claim
from kvmsup.model.topology import Topology
from kvmsup.records import NamedTuple


class Processor(NamedTuple):
    """The first CPU as /proc/cpuinfo has it; only x86 has `flags`, those of its "vmx flags" included."""

    arch: str  # as uname -m; "" on kernels before 6.1
    vendor: str
    model: str
    flags: frozenset[str]

    @property
    def x86(self) -> bool:
        """Whether it is x86, where KVM has a module for each vendor and parameters to look at."""
        return self.arch in ("x86_64", "i686") or (not self.arch and bool(self.flags))


class Device(NamedTuple):
    """/dev/kvm: `mode` are its permission bits, `group` the name of `gid`, "" where it has none."""

    character: bool
    mode: int
    gid: int
    group: str


class Probe(NamedTuple):
    """How far KVM went when it was asked for a machine: `failed` is "", open, version or create, `errno` why."""

    failed: str
    errno: int
    version: int  # KVM_GET_API_VERSION, 0 where it was not reached

    @property
    def works(self) -> bool:
        return not self.failed


class Kvm(NamedTuple):
    """`parameters` are those of each module of KVM that is loaded, by module and name."""

    parameters: Mapping[str, Mapping[str, str]]
    device: Device | None
    group: int | None  # the gid of the group kvm
    probe: Probe | None  # None: not asked, because that would load a module
    allowed: bool | None  # whether the firmware lets VT-x or SVM be used, by its MSR
    log: tuple[str, ...] | None  # what the kernel's log says of KVM; read only where KVM does not work
    rivals: tuple[str, ...]  # modules of other hypervisors
    iommus: tuple[str, ...]
    tables: frozenset[str] | None  # names of ACPI tables


class Stray(NamedTuple):
    """A thread that last ran on an isolated CPU, and is neither a guest's nor bound there by the kernel."""

    tid: int
    name: str
    cpu: int


class Intrusion(NamedTuple):
    """Interrupts or softirqs of a name, or a thread that belongs to `cpu`; how often each has run there."""

    cpu: int
    kind: str  # interrupt | softirq | thread
    name: str
    times: int


class Isolated(NamedTuple):
    """A guest whose CPUs are isolated: what of the kernel `ran` there since it started, None where nobody knows.

    `amiss` says what is not as it should be, "" where all is.
    """

    guest: str
    cpus: frozenset[int]
    ran: tuple[Intrusion, ...] | None
    amiss: str


class Cpus(NamedTuple):
    """`trouble` says why there is no `topology`. `strays` is None where other users' threads are hidden."""

    topology: Topology | None
    trouble: str
    smt: str | None
    vulnerabilities: Mapping[str, str]
    strays: tuple[Stray, ...] | None
    guests: tuple[Isolated, ...] = ()


class Pool(NamedTuple):
    """Hugepages of one size on one node; `size` is in bytes."""

    node: int
    size: int
    total: int
    free: int


class Memory(NamedTuple):
    """`swap` is size and use in bytes; `swapped` the bytes of each guest's QEMU that are in it."""

    pools: tuple[Pool, ...]
    transparent: str | None
    ksm: str | None
    policy: str  # of KSM in /etc/kvmsup.toml; "" where that cannot be read
    swap: tuple[int, int] | None
    swapped: Mapping[str, int]
    balancing: str | None


class System(NamedTuple):
    """`vendor` is the machine's maker as the firmware calls it, "" where it does not tell."""

    release: str | None
    command_line: str | None
    controllers: str | None
    booted: bool  # by systemd
    clocksource: str | None
    vendor: str


class Facts(NamedTuple):
    """All of it. `guests` are the claims by guest, None where they cannot be read."""

    processor: Processor
    kvm: Kvm
    cpus: Cpus
    memory: Memory
    system: System
    guests: Mapping[str, Claim] | None


class Programs(NamedTuple):
    """The first line of what each program says of its version, "" where it cannot be run, None for no answer yet."""

    systemd: str | None
    qemu: str | None
