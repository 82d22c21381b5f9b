# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup import: a domain becomes the guest that it was, what is not so is told, and no file is too bad to refuse."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import tomllib
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.cli import main
from kvmsup.effects import installed
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model import config
from kvmsup.plan import libvirt, libvirt_reasons, libvirt_values, libvirt_xml
from tests.unit.domains import CASES, expected, imported

DOMAIN = (
    "<domain type='kvm'><name>web</name><memory unit='GiB'>1</memory><vcpu>{vcpu}</vcpu>"
    "<os><type machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>{more}</domain>"
)


def domain(more: str = "", vcpu: str = "2") -> bytes:
    return DOMAIN.format(more=more, vcpu=vcpu).encode()


def tables(content: bytes) -> dict[str, Any]:
    """The keys of the file, which its own reader takes."""
    found = libvirt.convert(content)
    text = libvirt.render(found, "x.xml")
    config.read_guest(found.name, "x.toml", text.encode())
    return tomllib.loads(text)


def dropped(content: bytes) -> dict[str, str]:
    return {one.path: one.why for one in libvirt.convert(content).dropped}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_golden(case: Path) -> None:
    text = imported(case)
    assert text == expected(case).read_text("utf-8")
    config.read_guest("x", "x.toml", text.encode())
    assert all(line.isprintable() for line in text.splitlines())


def test_every_golden_has_its_domain() -> None:
    assert {file.stem for file in (CASES[0].parent / "expected").iterdir()} == {case.stem for case in CASES}
    assert len(CASES) >= 5


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        ("", "not XML"),
        ("\0", "not XML"),
        ("<domain", "not XML"),
        ("<domain/><domain/>", "not XML: junk after document element"),
        ("<domain type='kvm'>&nothing;</domain>", "not XML: undefined entity"),
        ("<network/>", "this is <network>, not the <domain> of a guest"),
        ("<domainsnapshot><domain type='kvm'/></domainsnapshot>", "this is <domainsnapshot>"),
        ("<domain/>", 'a domain of the type "" is no guest of QEMU'),
        ("<domain type='xen'/>", 'a domain of the type "xen" is no guest of QEMU'),
        ("<domain type='k\x9b31mvm'/>", 'a domain of the type "k?31mvm" is no guest of QEMU'),
        ("<domain type='kvm'><os><type arch='aarch64'/></os></domain>", 'the architecture "aarch64"'),
        ("<domain type='kvm'><os><type arch='i686'/></os></domain>", 'the architecture "i686"'),
        ("<domain type='kvm'><os><type>exe</type></os></domain>", 'of the type "exe" is no virtual machine'),
        ("<domain type='kvm'><os><type machine='microvm'/></os></domain>", 'no machine type "microvm"'),
        ("<domain type='kvm'><os><type machine='pc-q35-7.2,accel=tcg'/></os></domain>", "no machine type"),
        ("<domain type='kvm'><vcpu>0</vcpu></domain>", 'vcpu: "0" is no number of vCPUs from 1 to 4096'),
        ("<domain type='kvm'><vcpu>9999999999999999999999</vcpu></domain>", "is no number of vCPUs"),
        ("<domain type='kvm'><vcpu>²</vcpu></domain>", "is no number of vCPUs"),
        ("<domain type='kvm'/>", "does not say how much memory it has"),
        ("<domain type='kvm'><memory/></domain>", "no amount of memory"),
        ("<domain type='kvm'><memory>-1</memory></domain>", "no amount of memory"),
        ("<domain type='kvm'><memory unit='EiB'>99</memory></domain>", "no amount of memory"),
        ("<!DOCTYPE domain><domain/>", "the XML has a DOCTYPE"),
        ("<domain>" * 41, "elements in elements, over 40 deep"),
        ("<domain>" + "<a/>" * 20_001, "over 20000 elements"),
        ("<domain>" + " " * (1 << 20), "over 1 MiB"),
    ],
)
def test_refused(xml: str, what: str) -> None:
    with pytest.raises(KvmsupError) as caught:
        libvirt.convert(xml.encode())
    assert what in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()


BOMB = (
    "<!DOCTYPE lolz [<!ENTITY a0 'lol'>"
    + "".join(f"<!ENTITY a{number} '{f'&a{number - 1};' * 10}'>" for number in range(1, 12))
    + "]><domain type='kvm'><name>&a11;</name></domain>"
)
OUTSIDE = "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/shadow'>]><domain type='kvm'><name>&x;</name></domain>"


@pytest.mark.parametrize("xml", [BOMB, OUTSIDE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-7"])
def test_entities_are_refused_before_any_is_expanded(xml: str, encoding: str) -> None:
    started = time.process_time()
    with pytest.raises(KvmsupError):
        libvirt.convert(xml.encode(encoding))
    assert time.process_time() - started < 1


def test_a_declared_encoding_cannot_hide_anything() -> None:
    """What is searched for a DOCTYPE is what is parsed."""
    xml = "<?xml version='1.0' encoding='UTF-16'?>" + domain().decode()
    assert tables(xml.encode())["cpu"]["vcpus"] == 2


def test_the_largest_is_read_in_time() -> None:
    """Every vCPU pinned to every CPU that there can be."""
    pins = "".join(f"<vcpupin vcpu='{index}' cpuset='0-8191'/>" for index in range(4096))
    started = time.process_time()
    found = dropped(domain(f"<cputune>{pins}</cputune>", "4096"))
    assert time.process_time() - started < 10
    assert found["cputune/vcpupin"]


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3", {0, 1, 2, 3}),
        ("1-4,^3,6", {1, 2, 4, 6}),
        ("^3,1-4", {1, 2, 4}),
        (" 1 , 2 ", {1, 2}),
        ("", None),
        ("^1", None),
        ("0,^0", None),
        ("3-1", None),
        ("0-99999", None),
        ("x", None),
        ("0," * 9000, None),
    ],
)
def test_lists_of_cpus(text: str, cpus: set[int] | None) -> None:
    assert libvirt_values.Lists().cpus(text) == cpus


MANY = {
    "cputune/vcpusched": "<cputune>" + "<vcpusched vcpus='0-8191'/>" * 14_000 + "</cputune>",
    "cputune/iothreadpin": "<iothreads>1</iothreads><cputune>"
    + "<iothreadpin iothread='1' cpuset='0-8191'/>" * 15_000
    + "</cputune>",
    "cpu/numa/cell": "<cpu><numa>" + "<cell cpus='0-8191' memory='1'/>" * 15_000 + "</numa></cpu>",
    "cpu/numa/cell of one id": "<cpu><numa>" + "<cell id='0' cpus='0-8191' memory='1'/>" * 6000 + "</numa></cpu>",
    "cputune/vcpusched without any": "<cputune>" + "<vcpusched vcpus='0-8191,^0-8191'/>" * 14_000 + "</cputune>",
    "cputune/vcpusched that are wrong": "<cputune>" + "<vcpusched vcpus='0-8191,0-8191,x'/>" * 14_000 + "</cputune>",
}


@pytest.mark.parametrize("what", MANY)
def test_all_lists_together_are_bounded(what: str) -> None:
    started = time.process_time()
    found = dropped(domain(MANY[what]))
    assert time.process_time() - started < 5
    assert found[what.partition(" ")[0]]


def test_once_the_lists_name_too_many_each_is_told() -> None:
    """Of those before it no half is taken: a later one could have changed it."""
    much = "<iothreadpin iothread='1' cpuset='0-8191'/>" * 70
    sched = "<vcpusched vcpus='0-1' scheduler='fifo' priority='1'/>"
    for more in ("", much):
        xml = domain(f"<iothreads>1</iothreads><cputune>{pins('2', '3')}{sched}{more}</cputune>")
        assert tables(xml)["placement"]["scheduler"] == "fifo:1"
    assert dropped(xml)["cputune/iothreadpin"] == "the lists of the domain name over 524288 CPUs together"
    xml = domain(f"<cputune>{pins('2', '3')}{sched}{sched.replace('0-1', '0-8191') * 70}</cputune>")
    assert "scheduler" not in tables(xml)["placement"]
    assert dropped(xml)["cputune/vcpusched"] == "the lists of the domain name over 524288 CPUs together"


def test_more_guest_nodes_than_there_can_be() -> None:
    found = dropped(domain("<cpu><numa>" + "<cell cpus='0-8191' memory='1'/>" * 129 + "</numa></cpu>"))
    assert found["cpu/numa/cell"].startswith("guest nodes share out all vCPUs")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("<memory>1048576</memory>", 1 << 30),
        ("<memory unit='b'>1</memory>", 1),
        ("<memory unit='KB'>1</memory>", 1000),
        ("<memory unit='k'>1</memory>", 1024),
        ("<memory unit='MiB'>1</memory>", 1 << 20),
        ("<memory unit='GB'>1</memory>", 10**9),
        ("<memory unit='T'>1</memory>", 1 << 40),
        ("<memory unit='parsec'>1</memory>", None),
        ("<memory unit='kk'>1</memory>", None),
        ("<memory>0</memory>", None),
        ("<memory>1e3</memory>", None),
    ],
)
def test_amounts(written: str, size: int | None) -> None:
    reading = libvirt_xml.parse(f"<domain>{written}</domain>".encode())
    assert libvirt_values.amount(reading.domain.at("memory")) == size


def pins(*lists: str) -> str:
    return "".join(f"<vcpupin vcpu='{index}' cpuset='{cpus}'/>" for index, cpus in enumerate(lists))


@pytest.mark.parametrize(
    ("cputune", "placement"),
    [
        (pins("2", "3"), {"cpus": "dedicated", "vcpu": {"0": "2", "1": "3"}}),
        (pins("2", "2"), {"vcpu": {"0": "2", "1": "2"}}),
        (pins("2-3", "3"), {"vcpu": {"0": "2-3", "1": "3"}}),
        (pins("2"), None),
        ("<emulatorpin cpuset='0-1'/>", {"emulator": "0-1"}),
        ("<vcpusched vcpus='0-1' scheduler='fifo' priority='1'/>", None),
        (
            pins("2", "3") + "<vcpusched vcpus='0' scheduler='rr' priority='1'/>",
            {"cpus": "dedicated", "vcpu": {"0": "2", "1": "3"}},
        ),
        (
            pins("2", "3") + "<vcpusched vcpus='0' scheduler='rr' priority='1'/>"
            "<vcpusched vcpus='1' scheduler='rr' priority='1'/>",
            {"cpus": "dedicated", "scheduler": "rr:1", "vcpu": {"0": "2", "1": "3"}},
        ),
        (
            pins("2", "3") + "<vcpusched vcpus='0-1' scheduler='batch'/>",
            {"cpus": "dedicated", "vcpu": {"0": "2", "1": "3"}},
        ),
    ],
)
def test_placement(cputune: str, placement: dict[str, Any] | None) -> None:
    assert tables(domain(f"<cputune>{cputune}</cputune>")).get("placement") == placement


def test_everything_is_used_or_told() -> None:
    """What nobody reads is dropped with its path, whatever it is: an attribute, a text, an element."""
    xml = domain("<iothreads new='1'>1</iothreads><devices>loose<new a='1'><b/></new><disk><new/></disk></devices>")
    found = dropped(xml)
    assert found.keys() == {"iothreads/@new", "devices/text()", "devices/new", "devices/disk"}


def test_reasons_are_for_paths_that_are_read_by_nobody() -> None:
    """Each reason is a clause in one line that can stand behind a path."""
    for path, why in libvirt_reasons.WHY.items():
        assert path and not path.startswith("/")
        assert why.isprintable() and not why.endswith("."), path


@pytest.mark.parametrize(
    ("boots", "order"),
    [
        ("<boot dev='hd'/>", {}),
        ("<boot dev='hd'/><boot dev='cdrom'/>", {}),
        ("<boot dev='cdrom'/><boot dev='hd'/>", {"sda": 1, "vda": 2}),
        ("<boot dev='network'/><boot dev='hd'/>", {"net0": 1, "vda": 2}),
        ("<boot dev='fd'/>", {}),
    ],
)
def test_boot_order(boots: str, order: dict[str, int]) -> None:
    devices = (
        "<disk><source file='/a'/><target dev='vda'/></disk>"
        "<disk device='cdrom'><source file='/b'/><target dev='sda'/></disk>"
        "<disk><source file='/c'/><target dev='vdb'/></disk>"
        "<interface type='bridge'><source bridge='br0'/></interface>"
    )
    xml = domain(f"<devices>{devices}</devices>").replace(b"</type>", f"</type>{boots}".encode())
    found = tables(xml)
    both = found["disk"] | found["net"]
    assert {name: values["boot"] for name, values in both.items() if "boot" in values} == order


def test_more_disks_than_there_is_room_for() -> None:
    disks = "".join(f"<disk><source file='/{number}'/><target bus='virtio'/></disk>" for number in range(90))
    scsi = "<disk><source file='/s'/><target bus='scsi'/></disk>"
    found = libvirt.convert(domain(f"<devices>{disks}{scsi}</devices>"))
    assert sum(table.startswith("disk.") for table in found.values) == 80
    assert [one.times for one in found.dropped] == [11]
    tables(domain(f"<devices>{disks}{scsi}</devices>"))


# The grammar: every element that is read, with values that are right, nearly right and nothing of the kind. By number
# and not by hypothesis' own strategies, which take a hundred times as long to draw a tree as to import it.
VALUES = (
    *(
        "",
        "0",
        "1",
        "2",
        "3",
        "4",
        "64",
        "4096",
        "-1",
        "1e9",
        "9" * 30,
        "0-3",
        "1,^1",
        "0-99999",
        "yes",
        "on",
        "off",
        "x",
    ),
    *(
        "kvm",
        "qemu",
        "hvm",
        "x86_64",
        "q35",
        "pc",
        "pc-q35-7.2",
        "pc-i440fx-7.2",
        "/a",
        "/b",
        "//",
        "/a b",
        "/dev/sda",
    ),
    *(
        "/dev/a b",
        "raw",
        "qcow2",
        "vmdk",
        "none",
        "writeback",
        "unsafe",
        "native",
        "io_uring",
        "unmap",
        "virtio",
        "scsi",
    ),
    *("sata", "disk", "cdrom", "lun", "floppy", "file", "block", "bridge", "direct", "network", "user", "ethernet"),
    *("br0", "eth0", "vda", "sda", "52:54:00:00:00:01", "FE:00:00:00:00:01", "01:00:00:00:00:00", "host-passthrough"),
    *("custom", "host-model", "EPYC", "svm", "require", "disable", "strict", "fifo", "rr", "99", "GiB", "KiB", "MB"),
    *("1048576", "2048", "pty", "vnc", "spice", "hd", "\u00e9\u202e", "\x9b31m", "a" * 300, "1G", "a\tb", "#\" = '"),
)
NAMES = (
    *(
        "type",
        "id",
        "unit",
        "cpuset",
        "current",
        "vcpu",
        "vcpus",
        "scheduler",
        "priority",
        "iothread",
        "mode",
        "nodeset",
    ),
    *(
        "cellid",
        "size",
        "cpus",
        "memory",
        "value",
        "machine",
        "arch",
        "dev",
        "file",
        "bridge",
        "network",
        "bus",
        "name",
    ),
    *(
        "policy",
        "sockets",
        "dies",
        "cores",
        "threads",
        "cache",
        "io",
        "discard",
        "order",
        "address",
        "queues",
        "device",
    ),
    *("index", "controller", "firmware", "model", "state"),
)
# What is in what, with the values that its attributes and its text may well have.
SHAPE: dict[str, tuple[str, ...]] = {
    "domain": ("os", "cpu", "cputune", "numatune", "memoryBacking", "currentMemory", "iothreads", "devices",
               "features", "title", "clock", "on_crash", "iothreadids"),
    "os": ("boot", "loader", "nvram", "kernel", "initrd", "cmdline"),
    "cpu": ("model", "topology", "feature", "numa"),
    "numa": ("cell", "cell"),
    "cell": ("distances",),
    "distances": ("sibling",),
    "cputune": (*("vcpupin",) * 4, "emulatorpin", "iothreadpin", "vcpusched"),
    "numatune": ("memory", "memnode"),
    "memoryBacking": ("hugepages", "locked", "nosharepages"),
    "hugepages": ("page",),
    "iothreadids": ("iothread",),
    "features": ("hyperv", "kvm", "acpi", "pmu"),
    "hyperv": ("relaxed", "spinlocks"),
    "devices": ("disk", "disk", "disk", "interface", "interface", "controller", "serial", "console", "channel",
                "graphics", "video", "input", "memballoon", "rng"),
    "disk": ("source", "target", "driver", "readonly", "backingStore", "boot", "serial", "address"),
    "interface": ("source", "target", "driver", "mac", "model", "boot", "virtualport"),
    "controller": ("driver",),
}  # fmt: skip
TAGS = tuple({tag for inner in SHAPE.values() for tag in inner} | {"unknown"})
LIKELY: dict[str, dict[str, tuple[str, ...]]] = {
    "currentMemory": {"": ("524288", "1", "2000000")},
    "vcpupin": {"vcpu": ("0", "1", "2", "3"), "cpuset": ("2", "3", "4", "5", "6", "7", "4-5")},
    "vcpusched": {"vcpus": ("0-3", "0", "1"), "scheduler": ("fifo", "rr"), "priority": ("1", "99")},
    "emulatorpin": {"cpuset": ("0", "0-1")},
    "iothreads": {"": ("1", "2")},
    "iothreadpin": {"iothread": ("1", "2"), "cpuset": ("0", "1")},
    "memory": {"mode": ("strict",), "nodeset": ("0", "0-1")},
    "memnode": {"cellid": ("0", "1"), "mode": ("strict",), "nodeset": ("0", "1")},
    "page": {"size": ("2", "1", "2048"), "unit": ("M", "G", "KiB")},
    "boot": {"order": ("1", "2", "3"), "dev": ("hd", "cdrom", "network")},
    "topology": {"sockets": ("1", "2"), "cores": ("1", "2"), "threads": ("1", "2"), "dies": ("1",)},
    "feature": {"name": ("svm", "invtsc", "x2apic"), "policy": ("require", "disable", "optional")},
    "cell": {"id": ("0", "1"), "cpus": ("0", "1", "0-1", "2-3"), "memory": ("524288", "1", "1025")},
    "sibling": {"id": ("0", "1"), "value": ("10", "20", "21")},
    "disk": {"type": ("file", "block"), "device": ("disk", "cdrom", "lun")},
    "interface": {"type": ("bridge", "direct", "user", "network", "ethernet")},
    "source": {"file": ("/a", "/b", "/c", "/dev/sda"), "dev": ("/a", "eth0"), "bridge": ("br0",),
               "network": ("default",)},
    "target": {"dev": ("vda", "sda", "tap0", "vnet1"), "bus": ("virtio", "scsi", "sata")},
    "driver": {"type": ("raw", "qcow2"), "cache": ("none", "writeback"), "io": ("native",), "discard": ("unmap",),
               "iothread": ("1", "2"), "queues": ("2", "4")},
    "mac": {"address": ("52:54:00:00:00:01", "52:54:00:00:00:02", "fe:54:00:00:00:02")},
    "kernel": {"": ("/boot/vmlinuz",)},
    "graphics": {"type": ("vnc", "spice")},
    "serial": {"type": ("pty",)},
}  # fmt: skip


def element(random: Random, tag: str, depth: int = 0) -> str:
    """That element, mostly with what it may have, sometimes with anything."""
    likely = LIKELY.get(tag, {})
    attributes = {name: random.choice(values) for name, values in likely.items() if name and random.random() < 0.8}
    if random.random() < 0.15:
        attributes[random.choice(NAMES)] = random.choice(VALUES)
    text = random.choice(likely.get("", ("",))) if random.random() < 0.9 else random.choice(VALUES)
    inner = [one for one in SHAPE.get(tag, ()) if random.random() < 0.75]
    inner += [random.choice(TAGS)] if random.random() < 0.05 else []
    below = "".join(element(random, one, depth + 1) for one in inner) if depth < 6 else ""
    given = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<{tag}{given}>{escape(text)}{below}</{tag}>"


def any_domain(seed: int) -> bytes:
    """A domain by number: always of KVM, so that most of them are looked at as a whole."""
    random = Random(seed)
    inner = "".join(element(random, one) for one in SHAPE["domain"] if random.random() < 0.75)
    return domain(inner, random.choice("124"))


def check_told(content: bytes) -> bool:
    """Whether it is a guest, whose file is sound then; else a refusal that can be printed. Never anything else."""
    try:
        found = libvirt.convert(content)
    except KvmsupError as error:
        assert str(error).replace("\n", "").isprintable()
        return False
    text = libvirt.render(found, "x.xml")
    assert all(line.isprintable() for line in text.split("\n")), text
    config.read_guest(found.name, "x.toml", text.encode())
    for one in (*found.dropped, *found.changed):
        assert one.why and str(one).isprintable() and len(str(one)) < 1000
    return True


def test_any_domain() -> None:
    """Most of them are guests: a grammar of refusals would test little."""
    sound = [check_told(any_domain(seed)) for seed in range(400)]
    assert sound.count(True) > 200


@given(st.binary(max_size=60) | st.text(st.sampled_from("<>/?!-[]&;'\"= domain"), max_size=60).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    with pytest.raises(KvmsupError):
        libvirt.convert(content)


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=3))
def test_a_damaged_file(place: int, damage: bytes) -> None:
    whole = CASES[0].read_bytes()
    check_told(whole[:place] + damage + whole[place + len(damage) :])
    check_told(whole[:place])


@pytest.fixture
def xml(tmp_path: Path) -> str:
    path = tmp_path / "web.xml"
    path.write_bytes(domain("<sound/><devices><sound/></devices>"))
    return str(path)


def test_the_file_is_written_once(etc: Path, xml: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", xml]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{etc}/web.toml is written\n")
    assert "dropped:\n  sound: kvmsup has nothing like it\n  devices/sound: guests have no sound\n" in out
    assert out.endswith("      systemctl start kvm@web\n")
    text = (etc / "web.toml").read_text()
    assert tomllib.loads(text)["machine"]["type"] == "pc-q35-7.2"
    assert "#   devices/sound: guests have no sound\n" in text
    assert main(["import", xml]) == 1
    assert f"kvmsup: {etc}/web.toml is there already\n" in capsys.readouterr().err
    assert main(["import", xml, "--name", "other"]) == 0
    assert sorted(os.listdir(etc)) == ["other.toml", "web.toml"]


def test_elsewhere_and_for_programs(etc: Path, xml: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", xml, "--output", "-"]) == 0
    shown = capsys.readouterr().out
    assert main(["import", xml, "--output", f"{tmp_path}/new.toml", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["file"], report["written"]) == ("web", f"{tmp_path}/new.toml", True)
    assert report["toml"] == shown == (tmp_path / "new.toml").read_text()
    assert {"path": "devices/sound", "why": "guests have no sound", "times": 1} in report["dropped"]
    assert main(["import", xml, "--output", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] is False
    assert os.listdir(etc) == []


def test_standard_input(etc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(domain())))
    assert main(["import", "-"]) == 0
    assert capsys.readouterr().out.startswith(f"{etc}/web.toml is written\n")
    assert "Made from libvirt's domain on standard input." in (etc / "web.toml").read_text()


def test_a_closed_standard_input(
    etc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["import", "-"]) == 1
    assert capsys.readouterr().err == (
        "kvmsup: domain on standard input: cannot read: it is closed\n  hint: name a file, or give one with <\n"
    )
    assert os.listdir(etc) == []


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["/nowhere"], "/nowhere: cannot read: No such file or directory\n  hint: virsh dumpxml"),
        (["/"], "/: cannot read: Is a directory"),
        (["XML", "--name", "Web"], "--name 'Web' cannot name a guest"),
        (["XML", "--output", "/nowhere/x"], "/nowhere/x: cannot write: No such file or directory"),
        (["/dev/null"], "/dev/null: not XML: no element found"),
        (["/dev/zero"], "/dev/zero: the XML has over 1 MiB"),
    ],
)
def test_nothing_is_written(
    etc: Path, xml: str, arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *(xml if one == "XML" else one for one in arguments)]) == 1
    assert f"kvmsup: {what}" in capsys.readouterr().err
    assert os.listdir(etc) == []


def test_a_machine_that_this_qemu_has_not(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.xml"
    path.write_bytes(domain().replace(b"pc-q35-7.2", b"pc-q35-rhel8.6.0"))
    monkeypatch.setattr(installed, "machines", lambda: frozenset({"pc-q35-7.2"}))
    monkeypatch.setattr(installed, "newest_machine", lambda: "pc-q35-7.2")
    assert main(["import", str(path), "--output", "-"]) == 0
    assert "os/type/@machine: this host's QEMU has no pc-q35-rhel8.6.0" in capsys.readouterr().out

    def absent() -> frozenset[str]:
        raise HostError("there is no QEMU")

    monkeypatch.setattr(installed, "machines", absent)
    assert main(["import", str(path), "--output", "-"]) == 0
    assert "this host's QEMU" not in capsys.readouterr().out
    assert os.listdir(etc) == []
