# SPDX-License-Identifier: LGPL-2.1-or-later
"""What only root may open is plugged into a real, paused QEMU, which then boots from it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsup.effects import claims, handover, headers, identity, opening
from kvmsup.entry import attach, latecomers
from kvmsup.errors import HostError, QmpError, Refusal
from kvmsup.model import disks
from kvmsup.model.claim import Held
from kvmsup.model.guest import has_pcie
from kvmsup.plan import plugs, ports, unitfile
from kvmsup.plan.plugs import Command, File, Plug
from kvmsup.plan.refusals import Taken
from tests.unit import fake_qemu, real_qemu, real_systemd, systemd_syntax
from tests.unit.hosts import claim

CPU = str(min(os.sched_getaffinity(0)))
HELD = claim("web", [CPU], emulator=CPU)
PORT = "pcie-root-port,id=p0,bus=pcie.0,chassis=1,addr=14.0,multifunction=on,io-reserve=0"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40) | st.text(
    st.sampled_from("\\\"'$%{};#= \t\n\r,ab[]\x1b\x7f\x85é\u2028"), max_size=30
)


def disk(path: str, name: str = "root", *, write: bool = True, boot: int = 1, number: int = 0) -> Plug:
    """A disk as the generator has it, in raw."""
    node = {
        "driver": "raw",
        "node-name": f"disk.{name}",
        "read-only": not write,
        "file": {"driver": "file", "filename": f"/dev/fdset/{number}", "aio": plugs.CHOSEN_AIO},
        "cache": {"direct": True, "no-flush": False},
    }
    device = {"driver": "virtio-blk-pci", "id": f"disk.{name}", "drive": f"disk.{name}", "bus": f"p{number}"}
    commands = (Command("blockdev-add", node), Command("device_add", device | {"bootindex": boot}))
    return Plug(f"disk.{name}", File(path, write, number, "raw", direct=True), commands)


def image(directory: Path, name: str = "root", text: str = "booted\n") -> str:
    path = directory / name
    path.write_bytes(real_qemu.boot_sector(text))
    path.chmod(0o600)
    return str(path)


def attached(qemu: real_qemu.Running, *plugged: Plug) -> None:
    attach.run("web", qemu.process.pid, HELD, qemu.root, plugged)


def below(qemu: real_qemu.Running, text: str, name: str = "root") -> str:
    """A boot disk below the root of `qemu`, by its path there."""
    image(Path(qemu.root), name, text)
    return f"/{name}"


def test_a_guest_boots_from_what_was_plugged() -> None:
    with real_qemu.running("-device", PORT) as qemu:
        attached(qemu, disk(below(qemu, "from the plug\n")))
        assert qemu.printed("plug\n") == "from the plug\n"


def test_the_boot_order_is_of_the_plugs() -> None:
    other = PORT.replace("p0", "p1").replace("chassis=1", "chassis=2").replace("14.0", "14.1")
    with real_qemu.running("-device", PORT, "-device", other) as qemu:
        second = disk(below(qemu, "second\n", "one"), "one", boot=2)
        first = disk(below(qemu, "first\n", "two"), "two", boot=1, number=1)
        attached(qemu, second, first)
        assert qemu.printed("\n") == "first\n"


def test_a_machine_without_pcie() -> None:
    with real_qemu.running(machine="pc") as qemu:
        one = disk(below(qemu, "on pci.0\n"))
        device = Command("device_add", {**one.commands[1].arguments, "bus": "pci.0", "addr": "14.0"})
        attached(qemu, one._replace(commands=(one.commands[0], device)))
        assert qemu.printed("\n") == "on pci.0\n"


def test_a_file_that_nobody_else_may_open() -> None:
    """QEMU has a descriptor and nothing else: it needs no name that it could open."""
    with real_qemu.running("-device", PORT) as qemu:
        path = below(qemu, "gone\n")
        with qemu.connected() as monitor:
            one = disk(path, write=False)
            handover.plug(monitor, one, qemu.root, HELD)
            os.unlink(qemu.root + path)
            (block,) = monitor.execute("query-block")
            assert (block["inserted"]["ro"], block["inserted"]["file"]) == (True, "/dev/fdset/0")
            assert block["inserted"]["cache"] == {"direct": True, "no-flush": False, "writeback": True}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "disk.root: /root: cannot open: No such file or directory"),
        ("directory", "disk.root: /root is neither a file nor a block device"),
        ("fifo", "disk.root: /root is neither a file nor a block device"),
        ("refused", "disk.root: QEMU refused device_add: Bus 'p0' not found"),
        ("odd", "disk.root: QEMU refused blockdev-add: Parameter 'driver' does not accept value 'odd'"),
    ],
)
def test_what_cannot_be_plugged(change: str, said: str) -> None:
    with real_qemu.running(*([] if change == "refused" else ["-device", PORT])) as qemu:
        one = disk(below(qemu, "x"))
        if change in ("missing", "directory", "fifo"):
            os.unlink(f"{qemu.root}/root")
        if change == "directory":
            os.mkdir(f"{qemu.root}/root")
        if change == "fifo":
            os.mkfifo(f"{qemu.root}/root")
        if change == "odd":
            one = one._replace(commands=(Command("blockdev-add", {"driver": "odd"}),))
        with pytest.raises((HostError, QmpError)) as caught:
            attached(qemu, one)
        assert qemu.process.wait(10) == 0
    assert caught.value.what == said


def test_a_disk_that_setup_has_not_seen() -> None:
    """While the host boots it may come late. It is held then as setup would hold it, against other guests' disks."""
    with real_qemu.running("-device", PORT) as qemu:
        one = disk(below(qemu, "late\n"))
        mine = identity.of(os.stat(f"{qemu.root}/root"))
        os.link(f"{qemu.root}/root", f"{qemu.root}/other")
        holder = claim("db")._replace(disks=(Held("data", mine, write=False),))
        with claims.lock(qemu.root):
            claims.write(qemu.root, holder)
            claims.write(qemu.root, HELD)
        os.makedirs(f"{qemu.root}/run/systemd/units")
        os.symlink("0" * 32, f"{qemu.root}/run/systemd/units/invocation:kvm-setup@db.service")
        with pytest.raises(Taken) as caught:
            attached(qemu, one)
        assert qemu.process.wait(10) == 0
        assert caught.value.what == "disk.root: guest db has the same one as its disk.data"
        assert claims.read(qemu.root, "web") == HELD
        claims.remove(qemu.root, "db")
        late = {"disk.root": File("/root", True, 0, "raw"), "disk.b": File("/other", True, 1, "raw")}
        with pytest.raises(Refusal) as refused:
            latecomers.hold(qemu.root, HELD, late)
        assert refused.value.what == "disk.b: disk.root is the same one"
        del late["disk.b"]
        held = latecomers.hold(qemu.root, HELD, late)
        assert held.disks == (Held("root", mine, write=True),) and claims.read(qemu.root, "web") == held


def test_a_second_qemu_is_locked_out() -> None:
    with real_qemu.running("-device", PORT) as first, real_qemu.running("-device", PORT) as second:
        one = disk(below(first, "mine\n"))
        attached(first, one)
        with second.connected() as monitor, pytest.raises(QmpError) as caught:
            handover.plug(monitor, one, first.root, HELD)
        assert caught.value.what == 'disk.root: QEMU refused device_add: Failed to get "write" lock'


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("hang-up", "QEMU closed its monitor"),
        ("endless-line", "QEMU sent a message of over 8 MiB"),
    ],
)
def test_misbehaviour(behaviour: str, said: str, tmp_path: Path) -> None:
    with fake_qemu.running(behaviour) as fake, pytest.raises(QmpError, match=said):
        attach.run("web", fake.pid, claim("web", [CPU] * 2), fake.root, [disk(image(tmp_path))])


def qcow2(directory: Path, *options: str) -> Path:
    path = directory / "image.qcow2"
    program = real_qemu.installed("qemu-img")
    subprocess.run([program, "create", "-q", "-f", "qcow2", *options, str(path), "1M"], check=True)
    return path


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_a_qcow2_header_that_is_sound(tmp_path: Path, version: str) -> None:
    path = qcow2(tmp_path, "-o", f"compat={version}")
    os.close(opening.open_file(File(str(path), True, 0, "qcow2"), ""))


def test_a_header_that_leads_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    path = qcow2(tmp_path, "-b", str(secret), "-F", "raw")
    with pytest.raises(HostError) as caught:
        opening.open_file(File(str(path), True, 0, "qcow2"), "")
    assert str(caught.value) == (
        f"{path} has a backing file, and what an image names is not opened\n"
        f"  hint: qemu-img convert -O qcow2 {path} NEW.qcow2 makes an image of its own"
    )
    path.unlink()
    path = qcow2(tmp_path, "-o", f"data_file={secret}")
    with pytest.raises(HostError) as caught:
        opening.open_file(File(str(path), True, 0, "qcow2"), "")
    assert caught.value.what == f"{path} keeps its data in another file, and what an image names is not opened"


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", bytes(200), b"QFI\xfa" + bytes(200)])
def test_no_qcow2_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(HostError) as caught:
        opening.open_file(File(str(path), True, 0, "qcow2"), "")
    assert str(caught.value) == f'{path} is no qcow2 image\n  hint: format = "raw", if it is a raw one'


@settings(max_examples=50)
@given(st.binary(max_size=120), st.booleans())
def test_any_header(content: bytes, magic: bool) -> None:
    """A header is a sound one or a sentence, and what leads elsewhere is never sound."""
    found = (b"QFI\xfb" + content) if magic else content
    descriptor = os.memfd_create("header")
    try:
        os.write(descriptor, found)
        try:
            headers.check(descriptor, "x", "qcow2")
        except HostError as error:
            assert error.what.startswith("x ")
        else:
            assert len(found) >= 80 and struct.unpack(">Q", found[8:16]) == (0,)
    finally:
        os.close(descriptor)


PLUGS = st.builds(
    Plug,
    TEXTS,
    st.builds(File, TEXTS, st.booleans(), st.integers(0, 99), st.sampled_from(["raw", "qcow2"])),
    st.lists(st.builds(Command, TEXTS, st.dictionaries(TEXTS, TEXTS | st.integers() | st.booleans()))).map(tuple),
)


@settings(max_examples=40)
@given(st.lists(PLUGS, max_size=2))
def test_plugs_come_back_from_a_unit(several: list[Plug]) -> None:
    line = unitfile.assignment(plugs.VARIABLE, plugs.render(several))
    ((_, value),) = systemd_syntax.directives(f"[Service]\nEnvironment={line}\n")
    ((name, text),) = [systemd_syntax.specifiers(word).split("=", 1) for word in systemd_syntax.words(value)]
    assert (name, plugs.parse(text)) == (plugs.VARIABLE, tuple(several))


def test_systemd_itself_reads_the_same() -> None:
    odd = "/srv/a b\"c'd$HOME${X}$$%n%%\\x41\\;#é\u2028"
    text = plugs.render([disk(odd)])
    unit = f"[Service]\nEnvironment={unitfile.assignment(plugs.VARIABLE, text)}\nExecStart=/bin/true\n"
    dump = real_systemd.load({"probe.service": f"[Unit]\nDefaultDependencies=no\n{unit}"}, "probe.service")
    (found,) = [line for line in dump.splitlines() if f"Environment: {plugs.VARIABLE}=" in line]
    assert plugs.parse(found.partition("=")[2])[0].source == File(odd, True, 0, "raw", True)


@pytest.mark.parametrize(
    "text", ["", "{}x", "7", "[7]", '[["a",["file"],[]]]', '[["a",["nothing",1],[]]]', "[" * 9999]
)
def test_no_plugs(text: str) -> None:
    with pytest.raises(HostError, match=r"^KVMSUP_PLUGS is not as the generator writes it: "):
        plugs.parse(text)


def test_more_disks_than_one_variable_holds() -> None:
    """As many as there is room for, by the long names of /dev/disk/by-id: Linux starts a program with them."""
    name = "dm-uuid-LVM-" + "x" * 64
    several = [disk(f"/dev/disk/by-id/{name}{number:03}", f"data-{number}", number=number) for number in range(256)]
    found = plugs.variables(several)
    assert plugs.given({**found, "PATH": "/bin"}) == tuple(several)
    assert len(found) > 1 and plugs.VARIABLE in found
    subprocess.run(["/bin/true"], env=found, check=True)
    assert plugs.variables([]) == {} and plugs.given({}) == ()
    assert plugs.variables(several[:1]) == {plugs.VARIABLE: plugs.render(several[:1])}


def test_aio_is_the_one_thing_left_open() -> None:
    (add, _) = disk("/chosen").commands
    told = plugs.settled(add, "io_uring").arguments
    assert told["file"] == {"driver": "file", "filename": "/dev/fdset/0", "aio": "io_uring"}
    assert json.dumps(told).count("chosen") == 0
    fixed = Command("blockdev-add", {"file": {"aio": "native", "filename": "chosen"}, "node-name": "chosen"})
    assert plugs.settled(fixed, "io_uring") == fixed


def test_ports_are_all_different() -> None:
    found = [
        ports.port(slots, index, f"{slots.start}.{index}", "pc-q35-7.2")
        for slots in (ports.NIC_SLOTS, ports.DISK_SLOTS)
        for index in range(ports.most(slots, "q35"))
    ]
    assert len(found) == 32 + 80
    assert len({one.options["addr"] for one in found}) == len({one.options["chassis"] for one in found}) == len(found)
    assert (found[0].options["addr"], found[31].options["addr"]) == ("10.0", "13.7")
    assert (found[32].options["addr"], found[-1].options["addr"]) == ("14.0", "1d.7")
    assert found[9].place == {"bus": "port.16.9"}
    room = {"q35": disks.PCIE_ROOM, "pc": disks.PCI_ROOM}
    assert all(ports.most(ports.DISK_SLOTS, machine) == most[disks.BLK] for machine, most in room.items())


def test_every_port_is_one_that_qemu_makes() -> None:
    places = [
        ports.port(slots, index, f"x{slots.start}.{index}", "q35").options
        for slots in (ports.NIC_SLOTS, ports.DISK_SLOTS)
        for index in range(ports.most(slots, "q35"))
    ]
    devices = [",".join(["pcie-root-port", *(f"{key}={value}" for key, value in one.items())]) for one in places]
    with (
        real_qemu.running(*(word for device in devices for word in ("-device", device))) as qemu,
        qemu.connected() as monitor,
    ):
        found = {one["slot"] for one in monitor.execute("query-pci")[0]["devices"]}
    assert found >= {*ports.NIC_SLOTS, *ports.DISK_SLOTS}


def test_without_pcie_each_has_a_slot() -> None:
    assert [ports.port(ports.NIC_SLOTS, index, "x", "pc").place["addr"] for index in range(4)] == [
        *("10.0", "11.0", "12.0", "13.0"),
    ]
    assert not has_pcie("pc-i440fx-7.2") and has_pcie("pc-q35-10.0")


def test_direct_is_what_qemu_asks_for(tmp_path: Path) -> None:
    import fcntl

    path = image(tmp_path)
    for direct in (True, False):
        descriptor = opening.open_file(File(path, True, 0, "raw", direct), "")
        try:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        finally:
            os.close(descriptor)
        assert (bool(flags & os.O_DIRECT), flags & os.O_ACCMODE) == (direct, os.O_RDWR)


def test_a_file_system_without_direct_io() -> None:
    """The kernel's own have none."""
    with pytest.raises(HostError) as caught:
        opening.open_file(File("/proc/version", False, 0, "raw", True), "")
    assert str(caught.value) == (
        '/proc/version: its file system cannot go past the host\'s cache\n  hint: cache = "writeback"'
    )
