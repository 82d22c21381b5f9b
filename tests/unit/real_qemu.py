# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU itself, emulating: paused as a guest's is, with the control monitor where attach looks for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from kvmsup.effects import qmp

_PROGRAM = "qemu-system-x86_64"


class Running(NamedTuple):
    """A QEMU, and the root below which its sockets and what it says on ttyS0 are."""

    root: str
    process: subprocess.Popen[bytes]

    @property
    def monitor(self) -> str:
        return f"{self.root}/run/kvmsup/guests/web/control.qmp"

    def connected(self) -> qmp.Monitor:
        monitor = qmp.Monitor(self.monitor, self.process.pid, time.monotonic() + 60)
        try:
            monitor.negotiate()
        except BaseException:
            monitor.close()
            raise
        return monitor

    def printed(self, until: str, seconds: float = 60) -> str:
        """What the guest has printed, once `until` is in it."""
        file = Path(self.root, "ttyS0")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            text = file.read_text("latin-1") if file.exists() else ""
            if until in text:
                return text
            time.sleep(0.02)
        pytest.fail(f"{until!r} was not printed: {text!r}")


def installed(program: str = _PROGRAM) -> str:
    """The path of `program`; the test is skipped where it is not."""
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    return found


@contextlib.contextmanager
def running(*options: str, machine: str = "q35") -> Iterator[Running]:
    """A paused QEMU for the guest web, with `options` on top; killed and reaped at the end."""
    program = installed()
    root = tempfile.mkdtemp(prefix="q-")
    os.makedirs(f"{root}/run/kvmsup/guests/web")
    os.symlink("/proc", f"{root}/proc")
    command: Sequence[str] = [
        *(program, "-S", "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine),
        *("-accel", "tcg", "-m", "64M", "-serial", f"file:{root}/ttyS0"),
        *("-chardev", f"socket,id=control,path={root}/run/kvmsup/guests/web/control.qmp,server=on,wait=off"),
        *("-mon", "chardev=control,mode=control"),
        *options,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        yield Running(root, process)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(root)


def boot_sector(text: str) -> bytes:
    """A disk of 1 MiB, SeaBIOS wants a whole cylinder, that prints `text` to the first serial port and halts.

    xor ax,ax; mov ds,ax; mov si,0x7c00+21; next: lodsb; test al,al; jz end; mov dx,0x3f8; out dx,al; jmp next;
    end: hlt; jmp end
    """
    code = bytes.fromhex("31c0 8ed8 be157c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
    assert len(code) == 21
    return (code + text.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512)
