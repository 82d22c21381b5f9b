# SPDX-License-Identifier: LGPL-2.1-or-later
"""A claim: what one guest holds of the host. Its file is at once the ledger and kvm@'s EnvironmentFile=.

So that systemd and Python read the same thing, every value is made of digits, letters and , - : = . _ / + and spaces
only; nothing in it comes from a TOML's free text (systemd.exec(5), EnvironmentFile=).

Claims outlive an upgrade of kvmsup: what a later version adds needs a default when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from types import MappingProxyType

from kvmsup import cpulist
from kvmsup.errors import HostError
from kvmsup.records import NamedTuple

PREFIX = "KVMSUP_"
# Beside a claim in QEMU's environment: the fingerprint of the files that its command line was made from.
GENERATED = "KVMSUP_GENERATED"
_AFFINITY = "cpu-affinity="
NOBODY_ELSE = "kvmsup writes it; nobody else should"


class Interface(NamedTuple):
    """A network interface of the guest: its address, and the names of its end on the host and of what that is at."""

    name: str
    kind: str  # bridge | macvtap | tap | user
    mac: str
    link: str  # "" where the host has no end of it
    over: str


class Held(NamedTuple):
    """A disk of the guest that was there at setup; `identity` tells it from others, whatever path leads to it."""

    name: str
    identity: str  # block:MAJOR:MINOR, or file:MAJOR:MINOR:INODE of the device it is on
    write: bool
    on: tuple[str, ...] = ()  # what it lies on: the whole disk of a partition, the file of a loop device


class Backing(NamedTuple):
    """What is behind a guest's disks and firmware: the disks that are there, and what setup chooses; "": nothing."""

    disks: tuple[Held, ...]
    aio: str
    firmware: str
    nvram: str


class Claim(NamedTuple):
    """`pages`, `grown`, `before` and `absorbed` count hugepages of `page_size` bytes by host node.

    While `held` is false, setup is at work: `grown` is then what it may have added to a pool that stood at `before`,
    and `absorbed` what the pool may have made its own of the pages that others have beyond it (overcommitted).
    """

    guest: str
    held: bool
    dedicated: bool
    vcpu: tuple[frozenset[int], ...]  # host CPUs by vCPU index, maxcpus long
    idle: frozenset[int]  # siblings of its vCPUs' CPUs that nobody may use, itself included
    emulator: frozenset[int]
    iothread: Mapping[str, frozenset[int]]  # by the iothread's name
    scheduler: str  # "" | fifo:10 | rr:10
    core_scheduling: bool
    nodes: frozenset[int]  # where its memory is; empty: anywhere
    cells: tuple[int, ...]  # the host node of each guest node; empty: the guest sees one
    fill: tuple[frozenset[int], ...]  # the CPUs that fill each memory backend before the start; empty: none is filled
    page_size: int
    pages: Mapping[int, int]
    grown: Mapping[int, int]
    before: Mapping[int, int]
    vcpus: int  # how many of them are there at start
    ksm: bool
    loaded: str  # the fingerprint of the configuration that it was made from
    size: int = 0  # the guest's memory in bytes; 0 in claims from before there were balloons
    balloon: int = 0  # the size in bytes that it may be made at the smallest; 0: it has no balloon
    balloon_auto: bool = False
    cid: int = 0  # its address on the host's vsock; 0: it has none
    ready: str = ""  # what it says when it is ready: "yes" for READY=1, or a target; "": nothing
    agent: bool = False  # whether it has a channel to an agent in the guest
    paused: bool = False  # a reload has paused the guest for a moment: whoever finds it so lets it go on
    nets: tuple[Interface, ...] = ()
    disks: tuple[Held, ...] = ()
    aio: str = ""  # how QEMU does asynchronous I/O where the TOML leaves that open
    firmware: str = ""  # paths: the program of UEFI, and what the guest's NVRAM begins as
    nvram: str = ""
    absorbed: Mapping[int, int] = MappingProxyType({})
    isolate: bool = False  # whether the host keeps off its own CPUs

    @property
    def own_cpus(self) -> frozenset[int]:
        """The CPUs that nobody else may use."""
        return self.idle.union(*self.vcpu) if self.dedicated else frozenset()

    @property
    def isolated(self) -> frozenset[int]:
        """The CPUs that the host keeps off, as well as other guests."""
        return self.own_cpus if self.isolate else frozenset()


def render(claim: Claim) -> str:
    """The claim as an environment file."""
    fields = {
        "GUEST": claim.guest,
        "STATE": "held" if claim.held else "reserving",
        "PLACEMENT": "dedicated" if claim.dedicated else "shared",
        "VCPUS": str(claim.vcpus),
        "VCPU_CPUS": " ".join(map(cpulist.render, claim.vcpu)),
        "IDLE_CPUS": cpulist.render(claim.idle),
        "EMULATOR_CPUS": cpulist.render(claim.emulator),
        "IOTHREAD_CPUS": " ".join(f"{name}={cpulist.render(cpus)}" for name, cpus in claim.iothread.items()),
        "SCHEDULER": claim.scheduler,
        "CORE_SCHEDULING": "yes" if claim.core_scheduling else "no",
        "ISOLATE": "yes" if claim.isolate else "no",
        "NODES": cpulist.render(claim.nodes),
        "HOST_NODES": _several(claim.nodes, "host-nodes="),
        "CELLS": " ".join(map(str, claim.cells)),
        **{f"CELL_{number}": str(node) for number, node in enumerate(claim.cells)},
        **{f"FILL_{number}": _several(cpus, _AFFINITY) for number, cpus in enumerate(claim.fill)},
        "PAGE_SIZE": str(claim.page_size),
        "PAGES": _counts(claim.pages),
        "PAGES_GROWN": _counts(claim.grown),
        "POOL_BEFORE": _counts(claim.before),
        "POOL_ABSORBED": _counts(claim.absorbed),
        "KSM": "yes" if claim.ksm else "no",
        "LOADED": claim.loaded,
        "SIZE": str(claim.size),
        "BALLOON": str(claim.balloon),
        "BALLOON_AUTO": "yes" if claim.balloon_auto else "no",
        "CID": str(claim.cid),
        "READY": claim.ready,
        "AGENT": "yes" if claim.agent else "no",
        "PAUSED": "yes" if claim.paused else "no",
        "NETS": " ".join(f"{one.name}={one.kind},{one.mac},{one.link},{one.over}" for one in claim.nets),
        "DISKS": " ".join(map(_disk, claim.disks)),
        "AIO": claim.aio,
        "FIRMWARE": claim.firmware,
        "NVRAM_TEMPLATE": claim.nvram,
    }
    return "".join(f"{PREFIX}{key}={value}\n" for key, value in fields.items())


def parse(text: str, file: str) -> Claim:
    """The claim in the text of `file`. Raises HostError when it is none."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return from_environment(fields, file)


def from_environment(variables: Mapping[str, str], source: str) -> Claim:
    """The claim that systemd put into the environment of kvm@'s commands. Raises HostError when there is none."""
    try:
        claim = Claim(
            guest=variables["KVMSUP_GUEST"],
            held=variables["KVMSUP_STATE"] == "held",
            dedicated=variables["KVMSUP_PLACEMENT"] == "dedicated",
            vcpu=tuple(map(cpulist.parse, variables["KVMSUP_VCPU_CPUS"].split())),
            idle=cpulist.parse(variables.get("KVMSUP_IDLE_CPUS", "")),
            emulator=cpulist.parse(variables["KVMSUP_EMULATOR_CPUS"]),
            iothread=_parse_iothreads(variables.get("KVMSUP_IOTHREAD_CPUS", "")),
            scheduler=variables["KVMSUP_SCHEDULER"],
            core_scheduling=variables.get("KVMSUP_CORE_SCHEDULING", "no") == "yes",
            nodes=cpulist.parse(variables["KVMSUP_NODES"]),
            cells=tuple(map(int, variables.get("KVMSUP_CELLS", "").split())),
            fill=tuple(_parse_fill(variables)),
            page_size=int(variables["KVMSUP_PAGE_SIZE"]),
            pages=_parse_counts(variables["KVMSUP_PAGES"]),
            grown=_parse_counts(variables["KVMSUP_PAGES_GROWN"]),
            before=_parse_counts(variables["KVMSUP_POOL_BEFORE"]),
            vcpus=int(variables["KVMSUP_VCPUS"]),
            ksm=variables["KVMSUP_KSM"] == "yes",
            loaded=variables.get("KVMSUP_LOADED", ""),
            size=int(variables.get("KVMSUP_SIZE", "0")),
            balloon=int(variables.get("KVMSUP_BALLOON", "0")),
            balloon_auto=variables.get("KVMSUP_BALLOON_AUTO", "no") == "yes",
            cid=int(variables.get("KVMSUP_CID", "0")),
            ready=variables.get("KVMSUP_READY", ""),
            agent=variables.get("KVMSUP_AGENT", "no") == "yes",
            paused=variables.get("KVMSUP_PAUSED", "no") == "yes",
            nets=_parse_nets(variables.get("KVMSUP_NETS", "")),
            disks=_parse_disks(variables.get("KVMSUP_DISKS", "")),
            aio=variables.get("KVMSUP_AIO", ""),
            firmware=variables.get("KVMSUP_FIRMWARE", ""),
            nvram=variables.get("KVMSUP_NVRAM_TEMPLATE", ""),
            absorbed=_parse_counts(variables.get("KVMSUP_POOL_ABSORBED", "")),
            isolate=variables.get("KVMSUP_ISOLATE", "no") == "yes",
        )
    except (KeyError, ValueError) as error:
        raise HostError(f"{source} is not a claim: {error!r}", NOBODY_ELSE) from None
    if not (0 < claim.vcpus <= len(claim.vcpu) and claim.emulator):
        raise HostError(f"{source} is not a claim: it has no CPU for some of its threads", NOBODY_ELSE)
    return claim


def _several(numbers: frozenset[int], key: str) -> str:
    """QEMU takes one range at a time: host-nodes=0-1,host-nodes=3 (qapi/qom.json, MemoryBackendProperties)."""
    return cpulist.render(numbers).replace(",", f",{key}")


def _parse_fill(variables: Mapping[str, str]) -> Iterator[frozenset[int]]:
    for number in count():
        text = variables.get(f"{PREFIX}FILL_{number}")
        if text is None:
            return
        yield cpulist.parse(text.replace(_AFFINITY, ""))


def _counts(counts: Mapping[int, int]) -> str:
    return " ".join(f"{node}={count}" for node, count in sorted(counts.items()))


def _parse_counts(text: str) -> dict[int, int]:
    pairs = (word.split("=") for word in text.split())
    return {int(node): int(count) for node, count in pairs}


def _parse_nets(text: str) -> tuple[Interface, ...]:
    pairs = (word.split("=") for word in text.split())
    return tuple(Interface(name, *_four(value)) for name, value in pairs)


def _four(value: str) -> tuple[str, str, str, str]:
    kind, mac, link, over = value.split(",")
    return kind, mac, link, over


def _disk(one: Held) -> str:
    return ",".join((f"{one.name}={one.identity}", "rw" if one.write else "ro", *one.on))


def _parse_disks(text: str) -> tuple[Held, ...]:
    pairs = (word.split("=") for word in text.split())
    fields = ((name, *value.split(",")) for name, value in pairs)
    return tuple(Held(name, identity, access == "rw", tuple(on)) for name, identity, access, *on in fields)


def _parse_iothreads(text: str) -> dict[str, frozenset[int]]:
    pairs = (word.split("=") for word in text.split())
    return {name: cpulist.parse(cpus) for name, cpus in pairs}
