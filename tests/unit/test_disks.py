# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's disks from its TOML into a real QEMU: what it sees, where, and what it boots from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup.effects import qmp
from kvmsup.entry import attach
from kvmsup.model import config, disks
from kvmsup.model.guest import Guest
from kvmsup.plan import disks as planned
from kvmsup.plan import paths, qemu
from kvmsup.plan.unitfile import Variable, Word
from tests.unit import real_qemu
from tests.unit.hosts import claim

CPU = str(min(os.sched_getaffinity(0)))
HEAD = '[machine]\ntype = "{machine}"\n[memory]\nsize = "64M"\n[iothread.io0]\n'


def read(text: str, machine: str = "pc-q35-7.2") -> Guest:
    return config.read_guest("web", "web.toml", (HEAD.format(machine=machine) + text).encode()).guest


def words(guest: Guest, aio: str, code: str = "") -> Iterator[str]:
    """The options of its iothreads, disks and firmware."""
    values = {"KVMSUP_AIO": aio, "KVMSUP_FIRMWARE": code}
    chosen = [option for option in qemu.options(guest) if _is_ours(option)]
    for option in chosen:
        for word in option:
            yield "".join(values[part.name] if isinstance(part, Variable) else part for part in word)


def _is_ours(option: tuple[Word, ...]) -> bool:
    name, value = "".join(map(str, option[0])), "".join(map(str, option[-1]))
    ours = ("disk.", "scsi", "pcie-root-port", "iothread")
    return name in ("-object", "-blockdev", "-device") and any(one in value for one in (*ours, "firmware"))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guest's own images are."""
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    (tmp_path / "web").mkdir()
    return tmp_path / "web"


def sector(path: Path, text: str) -> str:
    path.write_bytes(real_qemu.boot_sector(text))
    path.chmod(0o600)
    return str(path)


def start(running: real_qemu.Running, guest: Guest) -> None:
    """As attach does; absolute paths in the guest's file are below the root of `running`."""
    held = claim("web", [CPU], emulator=CPU)._replace(
        iothread={one.name: frozenset((int(CPU),)) for one in guest.iothreads}
    )
    attach.run("web", running.process.pid, held, running.root, tuple(planned.plugs(guest)))


def seen(monitor: qmp.Conversation) -> dict[str, Any]:
    """What each drive of the guest is, by its id: its node, whether it is read only, its serial number and order."""
    found = {}
    for block in monitor.execute("query-block"):
        inserted = block.get("inserted", {})
        path = block["qdev"].removesuffix("/virtio-backend")
        parts = [monitor.execute("qom-get", path=path, property=name) for name in ("serial", "bootindex")]
        found[path.rpartition("/")[2]] = (inserted.get("node-name"), inserted.get("ro"), *parts)
    return found


ALL = """
[disk.own]
path = "own.img"
format = "raw"
iothread = "io0"
[disk.plugged]
path = "/plugged"
format = "raw"
iothread = "io0"
discard = true
[disk.scsi]
path = "scsi.img"
format = "raw"
bus = "virtio-scsi"
iothread = "io0"
[disk.scsi-plugged]
path = "/scsi"
format = "raw"
bus = "virtio-scsi"
read-only = true
[disk.cd]
path = "/cd"
format = "raw"
bus = "cdrom"
boot = 1
[disk.cd-own]
path = "cd.iso"
format = "raw"
bus = "cdrom"
"""


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_every_kind_of_disk(state: Path, machine: str, aio: str) -> None:
    guest = read(ALL, machine)
    for name in ("own.img", "scsi.img", "cd.iso"):
        sector(state / name, f"{name}\n")
    with real_qemu.running(*words(guest, aio), machine=machine) as running:
        for name in ("plugged", "scsi", "cd"):
            sector(Path(running.root, name), f"{name}\n")
        start(running, guest)
        # El Torito is what a CD-ROM boots by, and a sector is none: the next one in the order of the file.
        assert running.printed("\n") == "own.img\n"
        with running.connected() as monitor:
            assert seen(monitor) == {
                "disk.own": ("disk.own", False, "own", 2),
                "disk.plugged": ("disk.plugged", False, "plugged", 3),
                "disk.scsi": ("disk.scsi", False, "scsi", 4),
                "disk.scsi-plugged": ("disk.scsi-plugged", True, "scsi-plugged", 5),
                "disk.cd": ("disk.cd", True, "cd", 1),
                "disk.cd-own": ("disk.cd-own", True, "cd-own", 6),
            }
            threads = {
                name: monitor.execute("qom-get", path=f"/machine/peripheral/{name}", property="iothread")
                for name in ("disk.own", "disk.plugged", "scsi.io0", "scsi")
            }
    assert threads == {**dict.fromkeys(("disk.own", "disk.plugged", "scsi.io0"), "/objects/io0"), "scsi": ""}


def test_places_do_not_depend_on_what_is_behind(state: Path) -> None:
    """A disk that moves from the guest's directory to the host's keeps its address, and so do all others."""
    texts = [
        "".join(f'[disk.{name}]\npath = "{path}"\nformat = "raw"\n' for name, path in row)
        for row in (
            [("a", "a"), ("b", "b"), ("c", "/c")],
            [("a", "/a"), ("b", "b"), ("c", "c")],
        )
    ]
    found = []
    for text in texts:
        guest = read(text)
        for name in "abc":
            sector(state / name, name)
        with real_qemu.running(*words(guest, "threads")) as running:
            for name in "abc":
                sector(Path(running.root, name), name)
            start(running, guest)
            running.printed("a")  # what is behind a port is told once the BIOS has numbered the buses
            with running.connected() as monitor:
                found.append(addresses(monitor))
    assert found[0] == found[1] == {"disk.a": "14.0", "disk.b": "14.1", "disk.c": "14.2"}


def addresses(monitor: qmp.Conversation) -> dict[str, str]:
    """Slot and function on the root bus of the port that each device is behind."""
    (bus,) = monitor.execute("query-pci")
    return {
        device["qdev_id"]: f"{port['slot']:x}.{port['function']}"
        for port in bus["devices"]
        for device in port.get("pci_bridge", {}).get("devices", [])
    }


def test_as_many_as_there_is_room_for(state: Path) -> None:
    most = disks.PCIE_ROOM[disks.BLK]
    text = "".join(f'[disk.d{number}]\npath = "d{number}"\nformat = "raw"\n' for number in range(most))
    guest = read(text)
    for number in range(most):
        sector(state / f"d{number}", f"{number}\n")
    with real_qemu.running(*words(guest, "threads")) as running:
        start(running, guest)
        assert running.printed("\n", 60) == "0\n"
        with running.connected() as monitor:
            assert len(addresses(monitor)) == most


def test_uefi_boots_what_the_bios_would_not(state: Path) -> None:
    code, nvram = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    if not code.exists():
        pytest.skip("the package ovmf is not installed")
    guest = read('[disk.root]\npath = "/root"\nformat = "raw"\n')
    guest = guest._replace(machine=guest.machine._replace(firmware="uefi"))
    (state / "nvram.fd").write_bytes(nvram.read_bytes())
    before = (state / "nvram.fd").read_bytes()
    machine = "q35,pflash0=firmware.code,pflash1=firmware.nvram"
    with real_qemu.running(*words(guest, "threads", str(code)), machine=machine) as running:
        sector(Path(running.root, "root"), "not by UEFI\n")
        start(running, guest)
        assert "BdsDxe" in running.printed("BdsDxe", 60)
    assert (state / "nvram.fd").read_bytes() != before


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([None, None], {"a": 1, "b": 2}),
        ([None, 1], {"a": 2, "b": 1}),
        ([7, None], {"a": 7, "b": 8}),
        ([2, 1], {"a": 2, "b": 1}),
    ],
)
def test_boot_order(numbers: list[int | None], expected: dict[str, int]) -> None:
    lines = [
        f'[disk.{name}]\npath = "{name}"\nformat = "raw"\n{f"boot = {number}" if number else ""}\n'
        for name, number in zip("ab", numbers, strict=True)
    ]
    assert planned.boot_order(read("".join(lines))) == expected
