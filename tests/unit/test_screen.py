# SPDX-License-Identifier: LGPL-2.1-or-later
"""Consoles, display and pvpanic as QEMU itself takes them, and what status says of a guest that does not run."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup.cli import status
from kvmsup.effects import glance, observe
from kvmsup.model import config
from kvmsup.model.guest import Guest
from kvmsup.plan import ending, qemu
from tests.unit import fake_qemu, real_qemu

MINIMAL = '[machine]\ntype = "{machine}"\n[memory]\nsize = "64M"\n'


def guest(machine: str, more: str = "") -> Guest:
    return config.read_guest("web", "web.toml", (MINIMAL.format(machine=machine) + more).encode()).guest


def words(asked: Guest, root: str, *options: str) -> list[str]:
    """Those of the guest's options that are named, with its sockets below `root`."""
    found = (["".join(map(str, word)) for word in option] for option in qemu.options(asked) if option[0][0] in options)
    return [word.replace("/run/kvmsup", f"{root}/run/kvmsup") for option in found for word in option]


def devices(machine: real_qemu.Running) -> dict[str, int]:
    """The slot of each PCI device, by what it is and its own id."""
    with machine.connected() as monitor:
        found: list[dict[str, Any]] = monitor.execute("query-pci")[0]["devices"]
    return {f"{one['id']['vendor']:x}:{one['id']['device']:x} {one['qdev_id']}": one["slot"] for one in found}


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
def test_the_display_moves_no_other_device(machine: str) -> None:
    others = ("-device", "virtio-serial-pci,id=consoles", "-device", "virtio-rng-pci")
    with real_qemu.running(*others, machine=machine) as without:
        before = devices(without)
    root = without.root
    os.makedirs(f"{root}/run/kvmsup/guests/web")
    asked = guest(machine, "[display]\nvnc = true\n")
    display = [
        word
        for option in qemu._display(asked)
        for word in ("".join(map(str, part)).replace("/run/kvmsup", f"{root}/run/kvmsup") for part in option)
    ]
    try:
        # Before the others: it is the places that count.
        with real_qemu.running(*display, *others, machine=machine) as shown:
            found = devices(shown)
            assert {name: slot for name, slot in found.items() if name in before} == before
            assert sorted(slot for name, slot in found.items() if name not in before) == [0x0E, 0x0F]
            with socket.socket(socket.AF_UNIX) as viewer:
                viewer.settimeout(20)
                viewer.connect(f"{root}/run/kvmsup/guests/web/vnc")
                assert viewer.recv(12) == b"RFB 003.008\n"
            assert os.stat(f"{root}/run/kvmsup/guests/web/vnc").st_uid == os.geteuid()
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize(("serial", "end"), [("journal", "hvc0"), ("interactive", "ttyS0")])
def test_one_console_is_on_the_socket(serial: str, end: str) -> None:
    asked = guest("pc-q35-7.2", f'[console]\nserial = "{serial}"\n')
    found = [word for word in words(asked, "", "-chardev") if word.startswith(("socket,id=hvc0", "socket,id=ttyS0"))]
    assert found == [f"socket,id={end},path=/run/kvmsup/guests/web/console,server=on,wait=off"]
    assert sum(word.startswith("stdio,") for word in words(asked, "", "-chardev")) == 1


# What the guest's firmware starts from its disk: some bytes of code, and a halt.
PANIC = "ba0505 b001 ee"  # mov dx, 0x505; mov al, 1; out dx, al: PVPANIC_PANICKED (qemu docs/specs/pvpanic.txt)
POWER_OFF = "ba0406 b80020 ef"  # mov dx, 0x604; mov ax, 0x2000; out dx, ax: S5 by PM1a_CNT, where SeaBIOS has it
RESET = "baf90c b006 ee"  # mov dx, 0xcf9; mov al, 6; out dx, al


@contextlib.contextmanager
def booted(code: str, tmp_path: Path) -> Iterator[real_qemu.Running]:
    """A QEMU with what every guest has for its end, whose disk has that code; it runs."""
    sector = bytes.fromhex(code) + b"\xf4\xeb\xfd"  # hlt; jmp back
    (tmp_path / "disk").write_bytes((sector.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))  # a cylinder
    options = ["".join(map(str, word)) for option in qemu._ends(guest("pc-q35-7.2")) for word in option]
    options[options.index("-D") + 1] = str(tmp_path / "ended")
    disk = ("-drive", f"file={tmp_path}/disk,format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk")
    with real_qemu.running(*options, *disk) as machine:
        yield machine


@pytest.mark.parametrize(
    ("code", "status", "cause", "said"),
    [
        (PANIC, 1, 8, "the guest's kernel has panicked"),
        (POWER_OFF, 0, 6, "the guest has shut down"),
    ],
)
def test_how_a_guest_ends(code: str, status: int, cause: int, said: str, tmp_path: Path) -> None:
    """A panic is a failure of QEMU's, its own shutdown is none, and QEMU writes down which it was."""
    with booted(code, tmp_path) as machine:
        with machine.connected() as monitor:
            monitor.execute("cont")
            assert monitor.wait_for_end(60)
        assert machine.process.wait(20) == status
    traced = (tmp_path / "ended").read_text()
    assert ending.cause(traced) == cause
    found = ending.told("exit-code" if status else "success", cause)
    assert found and found.failed == bool(status) and found.what.startswith(said)


def test_a_reset_is_the_same_qemu(tmp_path: Path) -> None:
    with booted(RESET, tmp_path) as machine, machine.connected() as monitor:
        monitor.execute("cont")
        deadline = time.monotonic() + 60
        while monitor.events.count("RESET") < 3:
            assert time.monotonic() < deadline
            assert not monitor.wait_for_end(0.2)
        assert monitor.execute("query-status")["status"] == "running"
    assert not (tmp_path / "ended").exists() or ending.cause((tmp_path / "ended").read_text()) is None


def seen(pid: int) -> glance.Seen:
    return glance.Seen("web", "active", "running", "success", pid, "", 0.0, "", None, configured=True)


@pytest.mark.parametrize(
    ("behaviour", "state", "lines"),
    [
        ("good", "None", []),
        ("paused", "paused", ["  guest      it is paused"]),
        (
            "internal-error",
            "internal-error",
            [
                "  guest      internal-error: KVM could not run it any further, the journal has QEMU's words;"
                " systemctl restart kvm@web"
            ],
        ),
    ],
)
def test_status_tells_of_a_guest_that_does_not_run(behaviour: str, state: str, lines: list[str]) -> None:
    with fake_qemu.running(behaviour) as fake:
        os.symlink("control.qmp", f"{fake.root}/run/kvmsup/guests/web/admin.qmp")
        found = observe.state(fake.root, seen(fake.pid))
        assert found == state
        assert status._state_lines({"state": found, "name": "web"}) == lines
    assert observe.state("", seen(0)) is None


def test_status_shows_the_way_to_the_screen() -> None:
    path = "/run/kvmsup/guests/web/vnc"
    said = f"  vnc        ssh -L 5900:{path} root@HOST, and then a viewer at localhost:5900"
    assert status._vnc_lines({"vnc": path}) == [said]
    assert status._vnc_lines({"vnc": None}) == []


def test_a_link_is_not_the_way_to_the_screen(tmp_path: Path) -> None:
    directory = tmp_path / "run/kvmsup/guests/web"
    directory.mkdir(parents=True)
    root, path = str(tmp_path), "/run/kvmsup/guests/web/vnc"
    assert observe.vnc(root, seen(1)) is None
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(directory / "other"))
        (directory / "vnc").symlink_to("other")
        assert observe.vnc(root, seen(1)) is None
        (directory / "other").rename(directory / "vnc")
        assert observe.vnc(root, seen(1)) == path
        assert observe.vnc(root, seen(0)) is None
