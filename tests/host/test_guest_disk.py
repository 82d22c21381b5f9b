# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk of the real guest by itself, on an emulated machine without a lab: both firmwares, and a credential."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kvmsup.model import config
from kvmsup.plan import firstboot
from tests.host import guest_disk
from tests.lab.errors import LabUnavailable

QEMU = "qemu-system-x86_64"
CODE, VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
PATIENCE_SECONDS = 400.0


def command(tmp_path: Path, disk: Path) -> list[str]:
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "tcg"),
        *("-cpu", "max,la57=off", "-smp", "2", "-m", "768M", "-snapshot"),
        *("-drive", f"if=none,id=d,format=qcow2,file={disk}", "-device", "virtio-blk-pci,drive=d,bootindex=1"),
        *("-serial", f"file:{tmp_path}/serial", "-device", "virtio-rng-pci"),
    ]


def booted(tmp_path: Path, argv: list[str]) -> str:
    """What the guest wrote to its serial port until it was up, or had no more time."""
    serial = tmp_path / "serial"
    process = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            text = serial.read_text(errors="replace") if serial.exists() else ""
            if f"{guest_disk.UP}: " in text and text.endswith("\n"):
                return text
            time.sleep(0.5)
        return serial.read_text(errors="replace")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_it_boots_and_takes_its_name_from_a_credential(tmp_path: Path, firmware: str) -> None:
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed")
    try:
        disk = guest_disk.path()
    except LabUnavailable as error:
        pytest.skip(str(error))
    argv = command(tmp_path, disk)
    (tmp_path / "name").write_text(f"told-{firmware}")
    asked = config.read_guest("x", "x", b'[memory]\nsize = "1G"\n[credentials]\nsystem.hostname = "/x"\n').guest
    (item,) = firstboot.items(asked)
    argv += ["-fw_cfg", f"name={item.name},file={tmp_path}/name"]
    if firmware == "uefi":
        if not CODE.exists():
            pytest.skip(f"there is no {CODE} (Debian: apt install ovmf)")
        shutil.copy(VARS, tmp_path / "vars")
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={CODE}"]
        argv += ["-drive", f"if=pflash,format=raw,file={tmp_path}/vars"]
    assert f"{guest_disk.UP}: told-{firmware}" in booted(tmp_path, argv)
