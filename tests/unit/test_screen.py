# SPDX-License-Identifier: LGPL-2.1-or-later
"""Consoles, display and pvpanic as QEMU itself takes them, and what status says of a guest that does not run."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

import pytest

from kvmsup.cli import status
from kvmsup.effects import observe
from kvmsup.model import config
from kvmsup.model.guest import Guest
from kvmsup.plan import qemu
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


def test_qemu_writes_down_why_it_ended() -> None:
    asked = guest("pc-q35-7.2")
    options = [word for option in qemu._ends(asked) for word in map("".join, option)]  # type: ignore[arg-type]
    place = options.index("-D") + 1
    with real_qemu.running() as machine:
        options[place] = f"{machine.root}-ended"
    try:
        with real_qemu.running(*options) as machine:
            with machine.connected() as monitor:
                monitor.execute("quit")
            assert machine.process.wait(20) == 0
        with open(options[place], encoding="utf-8") as file:
            assert file.read() == "qemu_system_shutdown_request reason=2\n"
    finally:
        os.unlink(options[place])


def seen(pid: int) -> observe.Seen:
    return observe.Seen("web", "active", "running", "success", pid, "", 0.0, "", "", None, configured=True)


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
