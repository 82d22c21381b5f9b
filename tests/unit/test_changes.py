# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs against what is configured: keys and values, differences, and which of them a reload applies."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

from kvmsup import cpulist
from kvmsup.errors import Refusal
from kvmsup.model import config
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Balloon, Cell, Guest, Scheduler
from kvmsup.plan import changes, live
from kvmsup.plan.changes import LIVE, RESTART, differences, flatten
from tests.unit import hosts
from tests.unit.hosts import HOST

WEB = """
[machine]
type = "pc-q35-7.2"
[cpu]
vcpus = 2
maxcpus = 4
[memory]
size = "1G"
"""


def read(text: str) -> Guest:
    return config.read_guest("web", "web.toml", text.encode()).guest


def changed(old: str, new: str) -> list[str]:
    """The differences from one file to the other, through JSON, as `systemctl reload` would tell them."""
    running = json.loads(json.dumps(flatten(read(old))))
    found = changes.decide(differences(running, flatten(read(new))))
    return [f"{one.told} ({one.how}{one.why and f': {one.why}'})" for one in found]


def edited(*edits: tuple[str, str], text: str = WEB) -> list[str]:
    new = text
    for before, after in edits:
        assert before in new
        new = new.replace(before, after)
    return changed(text, new)


def records(record: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every field below `record`: where it is, and its key; * is any name."""
    for field, hint in get_type_hints(record).items():
        if field == "name":
            continue
        name = f"{key}{field.replace('_', '-')}"
        name = changes._CALLED.get(name, name)
        inner = [one for one in (hint, *get_args(hint)) if isinstance(one, type) and issubclass(one, tuple)]
        inner = [one for one in inner if hasattr(one, "_fields") and one is not Scheduler]
        if inner and not isinstance(hint, types.UnionType) and hint not in inner:
            name += ".*"
        if hint not in inner:
            yield (f"{record.__name__}.{field}", name)
        for one in inner:
            yield from records(one, f"{name}.")


def decided(key: str) -> bool:
    return any(changes._begins(pattern.split("."), key.split(".")) for pattern in changes.HOW)


def test_every_field_has_a_decision() -> None:
    """A new field of a guest must say whether a reload applies it: write its key into plan/changes.HOW."""
    found = list(records(Guest, ""))
    assert ("Cell.memory", "numa.*.memory") in found and ("Balloon.least", "memory.balloon.min") in found
    assert not [f"{where}: {key}" for where, key in found if not decided(key)]


def test_keys_are_those_of_the_file() -> None:
    known = {f"{table}.{key}".lstrip(".") for table, keys in config.GUEST_KEYS.items() for key in keys}
    text = """
    description = "x"
    [machine]
    type = "pc-q35-7.2"
    kernel = "/vmlinuz"
    [cpu]
    features = ["+pdpe1gb", "-svm"]
    vcpus = 2
    maxcpus = 4
    [placement]
    cpus = "dedicated"
    nodes = "0"
    emulator = "0-1"
    scheduler = "fifo:10"
    [placement.vcpu]
    0 = "2"
    1 = "3"
    2 = "4"
    3 = "5"
    [iothread.io0]
    cpus = "0"
    [iothread.io1]
    [memory]
    size = "1536M"
    [memory.balloon]
    min = "1G"
    [numa.0]
    vcpus = "0-1"
    distances = [10, 30]
    [numa.1]
    vcpus = "2-3"
    """
    found = flatten(read(text))
    assert json.loads(json.dumps(found)) == found
    # The keys of what a guest of this version can have besides are listed by their tables.
    keys = {key: value for key, value in found.items() if key.partition(".")[0] in known}
    here = {
        key: value
        for key, value in keys.items()
        if key.startswith(("description", "machine", "cpu", "placement", "iothread", "memory", "numa"))
    }
    assert {key: here[key] for key in here if here[key] != ""} == {
        "description": "x",
        "machine.type": "pc-q35-7.2",
        "machine.accel": "kvm",
        "machine.kernel": "/vmlinuz",
        "cpu.model": "host",
        "cpu.features": ["+pdpe1gb", "-svm"],
        "cpu.vcpus": 2,
        "cpu.maxcpus": 4,
        "cpu.sockets": 1,
        "cpu.dies": 1,
        "cpu.cores": 4,
        "cpu.threads": 1,
        "placement.cpus": "dedicated",
        "placement.nodes": "0",
        "placement.emulator": "0-1",
        "placement.scheduler": "fifo:10",
        "placement.smt": "prefer",
        "placement.core-scheduling": False,
        "placement.vcpu": ["0", "1", "2", "3"],
        "placement.vcpu.0": "2",
        "placement.vcpu.1": "3",
        "placement.vcpu.2": "4",
        "placement.vcpu.3": "5",
        "placement.isolate": False,
        "iothread": ["io0", "io1"],
        "iothread.io0.cpus": "0",
        "iothread.io1.cpus": None,
        "memory.size": "1536M",
        "memory.hugepages": None,
        "memory.lock": False,
        "memory.ksm": False,
        "memory.balloon.min": "1G",
        "memory.balloon.auto": False,
        "numa": ["0", "1"],
        "numa.0.vcpus": "0-1",
        "numa.0.memory": "768M",
        "numa.0.host-node": None,
        "numa.0.distances": [10, 30],
        "numa.1.vcpus": "2-3",
        "numa.1.memory": "768M",
        "numa.1.host-node": None,
        "numa.1.distances": [30, 10],
    } | ({"machine.firmware": "bios"} if "machine.firmware" in found else {})


def test_nothing_differs_from_itself() -> None:
    assert edited() == []
    assert edited(("[cpu]", "# a comment\n[cpu]\nthreads = 1")) == []


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([("vcpus = 2", "vcpus = 4")], ["cpu.vcpus 2 → 4 (live)"]),
        ([("vcpus = 2", "vcpus = 1")], ["cpu.vcpus 2 → 1 (restart: a vCPU is taken away only by a restart)"]),
        (
            [("vcpus = 2", "vcpus = 8"), ("maxcpus = 4", "maxcpus = 8")],
            [
                "cpu.vcpus 2 → 8 (restart: with cpu.maxcpus)",
                "cpu.maxcpus 4 → 8 (restart)",
                "cpu.cores 4 → 8 (restart)",
            ],
        ),
        ([("7.2", "7.1")], ["machine.type pc-q35-7.2 → pc-q35-7.1 (restart)"]),
        ([("[machine]", 'description = "front end"\n[machine]')], ["description (none) → front end (live)"]),
        ([('"1G"', '"2G"\nksm = true')], ["memory.size 1G → 2G (restart)", "memory.ksm false → true (live)"]),
        (
            [('"1G"', '"1G"\nksm = true\nlock = true')],
            ["memory.lock false → true (restart)", "memory.ksm false → true (restart: with memory.lock)"],
        ),
        (
            [('"1G"', '"1G"\n[memory.balloon]\nmin = "512M"')],
            ["memory.balloon (none) → (min = 512M, auto = false) (restart)"],
        ),
        ([("[memory]", "[iothread.io0]\n[memory]")], ["iothread.io0 (none) → (as usual) (restart)"]),
        (
            [("[memory]", '[net.lan]\nbridge = "br0"\nmac = "52:54:00:00:00:01"\n[memory]')],
            ["net.lan (none) → (bridge = br0, mac = 52:54:00:00:00:01, queues = 1) (restart)"],
        ),
        ([("[memory]", '[credentials]\n"ssh.key" = "/x"\n[memory]')], ["credentials.ssh.key (none) → /x (restart)"]),
        (
            [("[memory]", "[numa.0]\nvcpus = '0-3'\n[memory]")],
            ["numa.0 (none) → (vcpus = 0-3, memory = 1G, distances = (none)) (restart)"],
        ),
        (
            [
                (
                    "[memory]",
                    '[placement]\nemulator = "0"\n[placement.vcpu]\n0 = "1"\n1 = "1"\n2 = "1"\n3 = "1"\n[memory]',
                )
            ],
            ["placement.emulator (none) → 0 (live)", *(f"placement.vcpu.{one} (none) → 1 (live)" for one in range(4))],
        ),
        (
            [("[memory]", '[placement]\ncpus = "dedicated"\nemulator = "0"\nscheduler = "fifo:10"\n[memory]')],
            [
                "placement.cpus shared → dedicated (restart)",
                "placement.emulator (none) → 0 (restart: with placement.cpus)",
                "placement.scheduler (none) → fifo:10 (restart: with placement.cpus)",
            ],
        ),
    ],
)
def test_differences(edits: list[tuple[str, str]], said: list[str]) -> None:
    assert edited(*edits) == said


def test_an_order_that_the_guest_sees() -> None:
    """Of disks and interfaces: the next start puts them into other places on the PCI bus."""
    tables = {
        "lan": '[net.lan]\nbridge = "br0"\n',
        "wan": '[net.wan]\nbridge = "br1"\n',
        "a": '[disk.a]\npath = "/dev/a"\nformat = "raw"\n',
        "b": '[disk.b]\npath = "/dev/b"\nformat = "raw"\n',
        "io0": "[iothread.io0]\n",
        "io1": "[iothread.io1]\n",
    }

    def file(*names: str) -> str:
        return WEB + "".join(tables[name] for name in names)

    assert changed(file("lan", "wan"), file("wan", "lan")) == ["net lan, wan → wan, lan (restart)"]
    assert changed(file("a", "b"), file("b", "a")) == ["disk a, b → b, a (restart)"]
    assert changed(file("io0", "io1"), file("io1", "io0")) == []
    assert changed(file("lan"), file("wan", "lan")) == [
        "net.wan (none) → (bridge = br1, mac = 02:75:2c:6e:c2:ae, queues = 1) (restart)"
    ]
    assert changed(file("lan", "wan"), file("lan")) == [
        "net.wan (bridge = br1, mac = 02:75:2c:6e:c2:ae, queues = 1) → (none) (restart)"
    ]


def test_a_change_is_told_in_both_directions() -> None:
    """What goes is as much a difference as what comes."""
    more = WEB + '[memory.balloon]\nmin = "512M"\n[iothread.io0]\ncpus = "0"\n[placement]\nsmt = "prefer"\n'
    assert sorted(changed(more, WEB)) == [
        "iothread.io0 (cpus = 0) → (none) (restart)",
        "memory.balloon (min = 512M, auto = false) → (none) (restart)",
    ]
    assert changed(more, more.replace('"512M"', '"600M"\nauto = true').replace('cpus = "0"', 'cpus = "1"')) == [
        "memory.balloon.min 512M → 600M (live)",
        "memory.balloon.auto false → true (live)",
        "iothread.io0.cpus 0 → 1 (live)",
    ]


@pytest.mark.parametrize("lacks", ["memory.ksm", "memory.balloon", "iothread", "numa", "cpu.dies", "placement.vcpu"])
def test_what_another_version_did_not_know_is_no_difference(lacks: str) -> None:
    full = flatten(read(WEB + "[iothread.io0]\n"))
    part = {key: value for key, value in full.items() if key != lacks and not key.startswith(f"{lacks}.")}
    assert part != full
    assert differences(part, full) == differences(full, part) == []


def test_a_field_that_is_new_within_a_table() -> None:
    """Of an iothread that is there it is unknown; of one that is not it belongs to what has come."""
    full = flatten(read(WEB + "[iothread.io0]\n")) | {"iothread.io0.poll": 3}
    assert differences(flatten(read(WEB + "[iothread.io0]\n")), full) == []
    (found,) = differences(flatten(read(WEB)), full)
    assert (found.key, found.configured, found.how) == ("iothread.io0", {"cpus": None, "poll": 3}, RESTART)


@pytest.mark.parametrize("key", ["cpu.vcpus", "placement.vcpu.3", "memory.ksm"])
def test_what_was_under_way_is_done_again(key: str) -> None:
    """Whatever the file says meanwhile, also what it said before."""
    pins = WEB + '[placement.vcpu]\n0 = "1"\n1 = "1"\n2 = "1"\n3 = "1"\n'
    for old in (WEB, pins):
        running = changes.unsure(flatten(read(old)), [key])
        for new in (old, pins):
            found = {one.key: one for one in changes.decide(differences(running, flatten(read(new))))}
            assert found[key].how == LIVE
            assert found[key].running == changes.UNSURE
        assert differences(changes.settled(running, flatten(read(old)), [key]), flatten(read(old))) == []


def test_some_of_what_was_asked_for_is_settled() -> None:
    new = flatten(read(WEB.replace("vcpus = 2", "vcpus = 3").replace('"1G"', '"1G"\nksm = true')))
    running = changes.unsure(flatten(read(WEB)), ["cpu.vcpus", "memory.ksm"])
    left = differences(changes.settled(running, new, ["memory.ksm"]), new)
    assert [one.told for one in left] == ["cpu.vcpus ? → 3"]


# ---- where threads go ----

DEDICATED = hosts.guest(2, dedicated=True)


class Case(NamedTuple):
    """A guest on a host of two nodes with four cores without SMT each: CPU 0-3 and 4-7."""

    guest: Guest
    claim: Claim
    others: tuple[Claim, ...] = ()

    def place(self, *keys: str) -> dict[str, str]:
        topology = hosts.topology(2, 4, 1)
        found = live.place(self.guest, self.claim, keys, HOST, topology, self.others)
        after = live.claim_after(self.guest, self.claim, keys, found)
        assert after.loaded == "-" * 8 + "12345678"
        return {
            "vcpu": " ".join(map(cpulist.render, after.vcpu)),
            "emulator": cpulist.render(after.emulator),
            "nodes": cpulist.render(after.nodes),
        }


def held(*vcpu: str, **changed: Any) -> Claim:
    return hosts.claim("web", vcpu, **changed)._replace(loaded="abcdef0112345678")


def test_only_what_was_changed_moves() -> None:
    """Others have gone and better CPUs are free: no reason to move a vCPU because of the emulator."""
    case = Case(hosts.guest(2, dedicated=True, emulator="3"), held("2", "6", nodes="0-1"))
    assert case.place("placement.emulator") == {"vcpu": "2 6", "emulator": "3", "nodes": "0-1"}


def test_a_shared_guest_does_not_move_because_others_came() -> None:
    """What they own the fence keeps it off, and they go again."""
    other = hosts.claim("db", ("3", "6"))
    case = Case(hosts.guest(2, emulator="1"), held("0-7", "0-7", dedicated=False, nodes=""), (other,))
    assert case.place("placement.emulator") == {"vcpu": "0-7 0-7", "emulator": "1", "nodes": ""}
    # Neither with CPUs of its choice: it asks for none anew.
    case = Case(hosts.guest(1, emulator="1", vcpu=("2-3",)), held("2-3", dedicated=False, nodes=""), (other,))
    assert case.place("placement.emulator") == {"vcpu": "2-3", "emulator": "1", "nodes": ""}
    with pytest.raises(Refusal, match=r"^placement.vcpu: CPU 3 is dedicated to guest db\n"):
        case.place("placement.vcpu.0")


@pytest.mark.parametrize("dedicated", [True, False])
def test_a_cpu_that_is_offline_is_no_reason_to_refuse_what_moves_no_vcpu(dedicated: bool) -> None:
    topology = hosts.topology(2, 4, 1, offline=(3, 7))
    claim = held("2", "3", dedicated=dedicated, emulator="0", nodes="0")
    guest = hosts.guest(2, dedicated=dedicated, emulator="1")
    found = live.place(guest, claim, ["placement.emulator"], HOST, topology, ())
    assert (found.vcpu, found.emulator) == (claim.vcpu, frozenset((1,)))
    # A guest node whose CPUs are all gone is nowhere.
    cells = [Cell(frozenset((index,)), 1 << 29, None, (10, 20)) for index in range(2)]
    claim = held("2", "7", dedicated=dedicated, emulator="0", nodes="0-1")._replace(cells=(0, 1))
    guest = hosts.guest(2, dedicated=dedicated, emulator="1", cells=cells)
    with pytest.raises(Refusal) as caught:
        live.place(guest, claim, ["placement.emulator"], HOST, topology, ())
    assert str(caught.value) == (
        "CPU 7, all that guest node 1 has, is offline\n  hint: echo 1 > /sys/devices/system/cpu/cpu7/online"
    )


def test_chosen_cpus() -> None:
    case = Case(hosts.guest(2, dedicated=True, vcpu=("3", "2")), held("1", "2"))
    assert case.place("placement.vcpu.0", "placement.vcpu.1") == {"vcpu": "3 2", "emulator": "0", "nodes": "0"}


def test_cpus_of_another_guest_are_refused_with_its_name() -> None:
    other = hosts.claim("db", ("3",))
    case = Case(hosts.guest(2, dedicated=True, vcpu=("3", "2")), held("1", "2"), (other,))
    with pytest.raises(Refusal) as caught:
        case.place("placement.vcpu.0")
    assert str(caught.value) == (
        "placement.vcpu: CPU 3 is dedicated to guest db\n  hint: choose other CPUs, or stop that guest"
    )
    case = Case(hosts.guest(2, dedicated=True, emulator="3"), held("1", "2"), (other,))
    with pytest.raises(Refusal, match="^placement.emulator: CPU 3 is dedicated to guest db"):
        case.place("placement.emulator")


def test_memory_stays_where_it_is() -> None:
    case = Case(hosts.guest(2, dedicated=True, vcpu=("5", "6")), held("1", "2"))
    with pytest.raises(live.MemoryElsewhere, match="^its memory would go from node 0 to node 1$"):
        case.place("placement.vcpu.0", "placement.vcpu.1")
    # With CPUs of kvmsup's choice these are on the memory's node, however full that is and however empty the other.
    case = Case(hosts.guest(2, dedicated=True, size=64 << 30, smt="isolate"), held("5", "6", nodes="1", emulator="4"))
    assert case.place("placement.smt")["nodes"] == "1"


def test_a_shared_guest_without_a_place_for_its_memory() -> None:
    everywhere = held("0-7", "0-7", dedicated=False, nodes="")
    case = Case(hosts.guest(2, vcpu=("4-5", "6")), everywhere, (hosts.claim("db", ("7",), nodes="1"),))
    assert case.place("placement.vcpu.0") == {"vcpu": "4-5 6", "emulator": "4", "nodes": ""}
    assert Case(hosts.guest(2), everywhere, case.others).place("placement.vcpu.0")["vcpu"] == "0-6 0-6"


def test_the_rest_of_the_claim() -> None:
    guest = hosts.guest(2, dedicated=True, ksm=True)
    guest = guest._replace(memory=guest.memory._replace(balloon=Balloon(1 << 29, True)))
    guest = guest._replace(placement=guest.placement._replace(scheduler=Scheduler("rr", 5)))
    before = held("1", "2")
    keys = ["placement.scheduler", "memory.ksm", "memory.balloon.min", "memory.balloon.auto"]
    after = live.claim_after(guest, before, keys, None)
    assert (after.scheduler, after.ksm, after.balloon, after.balloon_auto) == ("rr:5", True, 1 << 29, True)
    assert after._replace(scheduler="", ksm=False, balloon=0, balloon_auto=False, loaded=before.loaded) == before
    assert live.claim_after(guest, before, [], None)._replace(loaded=before.loaded) == before


@pytest.mark.parametrize(
    ("now", "waiting", "then"),
    [
        ("aaaaaaaa11111111", False, "bbbbbbbb11111111"),
        ("--------11111111", False, "bbbbbbbb11111111"),
        ("--------11111111", True, "--------11111111"),
        ("aaaaaaaa22222222", False, "aaaaaaaa22222222"),
        ("", False, ""),
    ],
)
def test_what_the_next_start_finds(now: str, waiting: bool, then: str) -> None:
    """Only a claim that is all that the present files ask for is taken over by a restart."""
    assert live.loaded(now, "bbbbbbbb11111111", waiting) == then
