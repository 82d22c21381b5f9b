# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns the QEMU process of a lab host: its command line, its monitor, saving and loading it, its certain end."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache
from .build import Image
from .errors import LabError, LabPanic
from .recipe import KERNEL_COMMAND_LINE
from .terminal import Console

MEMORY_MIB = 6144
CPUS = 8
_VERSION = "2"  # raise it when states saved before are no longer good
_CPU_TCG = "max,la57=off,cx16=off,+topoext"

_running: set[Machine] = set()


@dataclass(frozen=True)
class Rig:
    """What a host is run with: its image, the image whose QEMU runs it, and "kvm", "tcg" or "tcg in turns".

    "tcg in turns" has all CPUs in one thread: with a thread each, and more of those than cores, whoever waits for
    another CPU spins until that one's thread has its turn, and two hosts on two cores take half as long again. But a
    Linux guest of such a host waits for ever before it has come up (seen with QEMU 10.0; why was not found).
    """

    image: Image
    emulator: Image
    accel: str

    @property
    def key(self) -> str:
        """Changes with whatever a saved state depends on."""
        shape = json.dumps(_hardware(self, Path("disk"), ""))
        return f"{self.image.path.name}-{cache.digest(self.emulator.path.name, self.accel, shape, _VERSION)}"

    def program(self, name: str, *arguments: str) -> list[str]:
        """The command that runs one of the image's QEMU programs on this machine."""
        place = self.emulator.emulator
        loader = place / "lib/ld-linux-x86-64.so.2"
        return [str(loader), "--library-path", str(place / "lib"), str(place / "bin" / name), *arguments]

    def overlay(self, path: Path, below: Path, kind: str) -> None:
        """Creates an empty overlay on `below`, whose format is `kind`; raises LabError."""
        command = self.program("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", kind, str(path))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"qemu-img create failed: {done.stderr}")


def _accelerator(accel: str) -> list[str]:
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host,+topoext" if _is_amd() else "host"]
    threads = {"tcg": "multi", "tcg in turns": "single"}[accel]
    return ["-accel", f"tcg,thread={threads},tb-size=512", "-cpu", _CPU_TCG]


def _is_amd() -> bool:
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def _hardware(rig: Rig, disk: Path, parameters: str) -> list[str]:
    """Everything the guest sees, in an order that must stay: a saved state fits only the same machine."""
    node = MEMORY_MIB // 2
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *_accelerator(rig.accel),
        *("-smp", f"{CPUS},sockets=2,cores=2,threads=2", "-m", str(MEMORY_MIB)),
        *("-object", f"memory-backend-ram,id=m0,size={node}M", "-numa", "node,nodeid=0,memdev=m0,cpus=0-3"),
        *("-object", f"memory-backend-ram,id=m1,size={node}M", "-numa", "node,nodeid=1,memdev=m1,cpus=4-7"),
        *(
            "-kernel",
            str(rig.image.kernel),
            "-initrd",
            str(rig.image.initrd),
            "-append",
            f"{KERNEL_COMMAND_LINE} {parameters}".rstrip(),
        ),
        *("-drive", f"if=none,id=d0,format=qcow2,file={disk},cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=d0", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=lab.0", "-serial", "chardev:console"),
        *("-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile="),
        *("-device", "virtio-rng-pci", "-mon", "chardev=monitor,mode=control"),
    ]


class Machine:
    """One running QEMU, and the directory of its overlay and console log. Ends with this process, whatever happens.

    Create it in a thread that lives as long as the machine shall: the kernel kills QEMU when that thread ends.
    """

    def __init__(self, rig: Rig, disk: Path, kind: str, *, state: Path | None = None, parameters: str = "") -> None:
        """`parameters` are for the kernel, besides those that it always gets; a restored one has its own."""
        self.rig = rig
        self.below = disk
        self.place, self._live = cache.scratch()
        self.disk = self.place / "disk.qcow2"
        self.log = self.place / "console.log"
        self._sockets: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None
        try:
            rig.overlay(self.disk, disk, kind)
            self._start(state, parameters)
        except BaseException:
            self.kill()
            raise

    def _start(self, state: Path | None, parameters: str) -> None:
        ends = {name: socket.socketpair() for name in ("agent", "console", "monitor")}
        self.agent, console, monitor = self._sockets = [ours for ours, _ in ends.values()]
        self.console = Console(console)
        share = self.rig.emulator.emulator / "share"
        command = ["setpriv", "--pdeathsig", "KILL", *self.rig.program("qemu-system-x86_64")]
        command += ["-L", str(share / "qemu"), "-L", str(share / "seabios")]
        for name, (_, theirs) in ends.items():
            log = f",logfile={self.log}" if name == "console" else ""
            command += ["-chardev", f"socket,id={name},fd={theirs.fileno()}{log}"]
        command += _hardware(self.rig, self.disk, parameters)
        if state:
            command += ["-S", "-incoming", "defer"]
        self.log.touch()
        with open(self.place / "qemu.log", "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the tests; they end the machine in their own time
                pass_fds=(self._live, *(theirs.fileno() for _, theirs in ends.values())),
                env={**os.environ, "QEMU_MODULE_DIR": str(share)},  # none: everything needed is built in
            )
        _running.add(self)
        for _, theirs in ends.values():
            theirs.close()
        self.monitor = Monitor(monitor, self.complaints)
        if state:
            self._load(state)

    def _load(self, state: Path) -> None:
        self.monitor.command("migrate-incoming", uri=f"file:{state}")
        self._await_migration()
        self.monitor.command("cont")

    def _await_migration(self) -> None:
        deadline = time.monotonic() + 120
        while (status := self.monitor.command("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise LabError(f"saving or loading the lab's state: {status}\n{self.complaints()}")
            time.sleep(0.02)

    def save(self, state: Path, disk: Path) -> None:
        """Writes memory and devices to `state` and copies the overlay to `disk`; the machine then runs on."""
        self.monitor.command("stop")
        try:
            self.monitor.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            self.monitor.command("migrate", uri=f"file:{state}")
            self._await_migration()
            # QEMU has given up the disk by now (state "postmigrate"): the file is complete.
            subprocess.run(["cp", "--reflink=auto", "--sparse=always", self.disk, disk], check=True)
        finally:
            self.monitor.command("cont")

    @property
    def pid(self) -> int:
        """Process id of QEMU; 0 if it was never started."""
        return self._process.pid if self._process else 0

    def check(self) -> None:
        """Raises LabPanic if the lab's kernel ever panicked, LabError if QEMU is gone."""
        # For good: the kernel reboots then, and the next command would run on another host, so to speak.
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        if (at := text.find("Kernel panic")) >= 0:
            raise LabPanic(f"the lab's kernel panicked:\n{text[max(0, at - 3000) : at + 3000]}")
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"the lab's QEMU is gone\n{self.complaints()}\n{text[-2000:]}")

    def complaints(self) -> str:
        """What QEMU itself wrote."""
        path = self.place / "qemu.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self) -> None:
        """Ends QEMU now and removes its directory. May be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.console.close()
        _running.discard(self)
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the threads that read
            connection.close()
        if self._live >= 0:
            os.close(self._live)
            self._live = -1
            shutil.rmtree(self.place, ignore_errors=True)


class Monitor:
    """A QMP client for one connection, one command at a time."""

    def __init__(self, connection: socket.socket, complaints: Callable[[], str]) -> None:
        connection.settimeout(60)
        self._complaints = complaints
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._line()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Runs a command and returns its result; raises LabError with what QEMU said."""
        request = {"execute": name, "arguments": arguments}
        with contextlib.suppress(BrokenPipeError):  # reading then says what is wrong
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._line()
            if "error" in message:
                raise LabError(f"QEMU refused {name}: {message['error']['desc']}")
            if "return" in message:
                result = message["return"]
                return result if isinstance(result, dict) else {"": result}

    def _line(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError:
            line = b""
        if not line:
            raise LabError(f"QEMU's monitor is gone or silent\n{self._complaints()}")
        message: dict[str, Any] = json.loads(line)
        return message


def _kill_all() -> None:
    for machine in list(_running):
        machine.kill()


atexit.register(_kill_all)
