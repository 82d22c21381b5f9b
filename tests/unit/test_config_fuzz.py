# SPDX-License-Identifier: LGPL-2.1-or-later
"""Anything that TOML can hold, below the known keys: a Guest, or findings that can be printed; never anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from kvmsup import cpulist
from kvmsup.errors import ConfigError
from kvmsup.model import config
from kvmsup.model.guest import Guest, Host
from kvmsup.model.topology import Topology
from kvmsup.plan import dropin
from tests.unit import systemd_syntax
from tests.unit.hosts import topology as synthetic

HOST = synthetic(2, 3, 1, offline=(4, 5))

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
# What a user might mean, and what is nearly that.
LIKELY = st.sampled_from(
    ["", " ", "0", "0-1", "0-99", "1,1", "5", "-1", "x", "dedicated", "shared", "kvm", "tcg", "q35", "pc-q35-7.2",
     "host", "+x", "-svm", "/boot/vmlinuz", "/a,b=c", "boot", "a %n $x \\ \" ' ;", "1G", "512M", "8GB", "1.5G", "0G",
     "9999T", "2M", "fifo:10", "rr:0", "fifo:100", "always", "never", "\u00a0", "\x1b", "e\u0301"]
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 8, 4096, 4097, -1, 1 << 63, 10**30]) | st.integers()
LEAVES = st.one_of(LIKELY, TEXTS, NUMBERS, st.booleans(), st.floats(), st.dates(), st.datetimes(), st.times())
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
WHOLE = st.sampled_from([0, 1, 2, 4, 6, 8, 4096]) | st.integers(1, 4)


def tables(keys: Mapping[str, tuple[str, ...]], table: str) -> st.SearchStrategy[dict[str, Any]]:
    known = st.dictionaries(st.sampled_from(keys[table]), LIKELY | WHOLE | st.booleans() | VALUES, max_size=6)
    pins = st.dictionaries(st.sampled_from("01234567"), LIKELY | VALUES, max_size=4)
    lists = st.lists(LIKELY, max_size=3)
    both = {"placement": known.flatmap(lambda values: pins.map(lambda vcpu: values | {"vcpu": vcpu}))}
    if table == "cpu" and "features" in keys[table]:
        both["cpu"] = known.flatmap(lambda values: lists.map(lambda features: values | {"features": features}))
    return known | both.get(table, known)


def fields(needed: Mapping[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with every key of `needed` and some of `optional`."""
    drawn: Any = st.fixed_dictionaries
    found: st.SearchStrategy[dict[str, Any]] = drawn(needed, optional=optional)
    return found


GUESTS = fields(
    {"memory": tables(config.GUEST_KEYS, "memory").map(lambda values: {"size": "1G"} | values)},
    **{name: tables(config.GUEST_KEYS, name) for name in ("machine", "cpu", "placement")},
    iothread=st.dictionaries(LIKELY | TEXTS, tables(config.GUEST_KEYS, "iothread.NAME"), max_size=2),
    numa=st.dictionaries(st.sampled_from(["0", "1", "2", "x"]), tables(config.GUEST_KEYS, "numa.N"), max_size=3),
    credentials=st.dictionaries(LIKELY | TEXTS, LIKELY | TEXTS | VALUES, max_size=3),
    description=LIKELY | TEXTS,
    other=VALUES,
)
PATHS = TEXTS.filter(str.isprintable).map(lambda text: f"/{text}")
# Mostly sound, so that what is accepted is looked at too.
PLAUSIBLE = fields(
    {"memory": fields({"size": st.just("8G")}, hugepages=st.just("2M"), lock=st.booleans())},
    description=TEXTS.filter(str.isprintable),
    credentials=st.dictionaries(st.sampled_from(["a", "system.hostname"]), PATHS, max_size=2),
    **{"cloud-init": st.dictionaries(st.sampled_from(config.GUEST_KEYS["cloud-init"]), PATHS, max_size=3)},
    machine=fields({"kernel": PATHS}, accel=st.just("tcg"), initrd=PATHS, cmdline=TEXTS.filter(str.isprintable)),
    cpu=fields({}, vcpus=st.integers(1, 4), threads=st.integers(1, 2), cores=st.integers(1, 3)),
    placement=fields(
        {},
        cpus=st.sampled_from(["shared", "dedicated"]),
        nodes=st.sampled_from(["0", "1", "0-1"]),
        emulator=st.sampled_from(["0", "1-3"]),
        vcpu=st.integers(1, 4).map(lambda count: {str(number): str(number) for number in range(count)}),
    ),
)
HOSTS = fields({}, **{name: tables(config.HOST_KEYS, name) for name in ("cpu", "ksm")})


def written(value: Any) -> str:
    """`value` as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(f"\\U{ord(char):08x}" if not char.isalnum() else char for char in value)
        return f'"{escaped}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def document(values: Mapping[str, Any]) -> bytes:
    return "".join(f"{written(key)} = {written(value)}\n" for key, value in values.items()).encode()


def check_told(error: ConfigError) -> None:
    """Every finding has a place, and a text that can go to a terminal, and is told once."""
    assert error.diagnostics
    assert len(set(map(str, error.diagnostics))) == len(error.diagnostics)
    assert any(found.severity == "error" for found in error.diagnostics)
    for found in error.diagnostics:
        assert str(found).replace("\n", "").isprintable()
        assert not found.source or 1 <= found.column <= len(found.source) + 1


def check_guest(guest: Guest, topology: Topology | None) -> None:
    cpu, placement = guest.cpu, guest.placement
    assert cpu.sockets * cpu.dies * cpu.cores * cpu.threads == cpu.maxcpus <= config.MOST_VCPUS
    assert 1 <= cpu.vcpus <= cpu.maxcpus
    assert len(placement.vcpu) in (0, cpu.maxcpus)
    assert all(placement.vcpu)
    if topology:
        assert frozenset().union(*placement.vcpu) <= topology.online
    if placement.dedicated:
        assert all(len(cpus) == 1 for cpus in placement.vcpu)
        assert len(frozenset().union(*placement.vcpu)) == len(placement.vcpu)
    unit = guest.memory.page_size or 1 << 20
    assert all(cell.memory > 0 and not cell.memory % unit for cell in guest.cells)
    if guest.cells:
        assert sum(cell.memory for cell in guest.cells) == guest.memory.size
        assert sorted(index for cell in guest.cells for index in cell.vcpus) == list(range(cpu.maxcpus))
    assert guest.memory.size > 0
    assert guest.memory.size % (guest.memory.page_size or 1 << 20) == 0


def check_dropin(guest: Guest) -> None:
    """The drop-in has the directives it should, each once, and QEMU's argv has nothing of systemd's left in it."""
    for name, text in dropin.render(guest, Host(None, "never"), "/etc/kvmsup/x.toml", "0").items():
        found = systemd_syntax.directives(text)
        names = [key for key, _ in found if key not in ("ExecStart", "LoadCredential", "Environment")]
        assert len(names) == len(set(names))
        assert set(names) <= {
            "SourcePath",
            "Description",
            "Slice",
            "CPUAffinity",
            "LimitMEMLOCK",
            "TimeoutStartSec",
            "ExecStartPre",
        }
        if name.startswith("kvm@"):
            reset, command = (value for key, value in found if key == "ExecStart")
            assert reset == ""
            argv = systemd_syntax.command(command, {"KVMSUP_HOST_NODES": "0", "KVMSUP_FILL_0": "1"})
            assert argv.count("-append") <= 1 and argv[:3] == ["/usr/bin/qemu-system-x86_64", "-name", argv[2]]
            assert guest.machine.cmdline in argv or not guest.machine.cmdline


@given(GUESTS | PLAUSIBLE, st.sampled_from([None, HOST]))
@example({"memory": {"size": "1G"}, "cpu": {"vcpus": 2}, "placement": {"vcpu": {"0": "1"}}}, None)
@example({"memory": {"size": "1G"}, "cpu": {key: 4096 for key in ("sockets", "dies", "cores", "threads")}}, None)
def test_any_guest(values: dict[str, Any], topology: Topology | None) -> None:
    try:
        guest = config.read_guest("x", "x.toml", document(values), topology).guest
    except ConfigError as error:
        check_told(error)
    else:
        check_guest(guest, topology)
        check_dropin(guest)


@given(HOSTS, st.sampled_from([None, HOST]))
def test_any_host(values: dict[str, Any], topology: Topology | None) -> None:
    try:
        host = config.read_host("x.toml", document(values), topology)
    except ConfigError as error:
        check_told(error)
    else:
        assert host.housekeeping is None or cpulist.render(host.housekeeping)
        assert host.ksm in ("pressure", "always", "never")


@given(st.binary(max_size=40) | st.text(st.sampled_from("[]{}=.\"'#\n\\ ab1,"), max_size=30).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    try:
        config.read_guest("x", "x.toml", content)
    except ConfigError as error:
        check_told(error)
    else:
        raise AssertionError("no such text says how much memory there is")
