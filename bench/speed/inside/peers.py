# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three ways to start a guest and to end it at once: kvmsup, libvirt, and QEMU by itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.speed.inside.guests import VIRSH, Shape, cpus, run

GUESTS = "/run/kvmsup/guests"


class Peer(Protocol):
    def start(self, name: str) -> None:
        """Start it; it runs, and its vCPUs are pinned, when this returns."""

    def pid(self, name: str) -> int:
        """That of its QEMU."""

    def end(self, name: str) -> None:
        """End it at once, as a power cut does."""


class Kvmsup:
    """As an administrator does, with the supervisor there already, as with every guest but the first."""

    def __init__(self) -> None:
        unit = "[Unit]\nWants=kvmsup.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"
        Path("/run/systemd/system/bench.service").write_text(unit)
        run("systemctl", "daemon-reload")
        run("systemctl", "start", "bench", "kvmsup")

    def start(self, name: str) -> None:
        run("systemctl", "start", f"kvm@{name}")

    def pid(self, name: str) -> int:
        return int(run("systemctl", "show", "-P", "MainPID", f"kvm@{name}"))

    def end(self, name: str) -> None:
        run("systemctl", "kill", "--signal=KILL", f"kvm@{name}")
        run("systemctl", "stop", f"kvm@{name}", f"kvm-setup@{name}")


class Libvirt:
    """The distribution's libvirt, as it is configured there."""

    def start(self, name: str) -> None:
        run(*VIRSH, "start", name)

    def pid(self, name: str) -> int:
        return int(Path(f"/run/libvirt/qemu/{name}.pid").read_text())

    def end(self, name: str) -> None:
        run(*VIRSH, "destroy", name)


class Bare:
    """QEMU with kvmsup's command line, started and pinned by a process that is there already."""

    def __init__(self, shapes: Mapping[str, Shape], argv: Mapping[str, Sequence[str]]) -> None:
        """`argv` is what kvmsup starts for each guest, whose sockets get a directory of their own here."""
        self._shapes = shapes
        self._place = tempfile.mkdtemp(prefix="bench-")
        self._argv = {name: [one.replace(GUESTS, self._place) for one in line] for name, line in argv.items()}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in argv:
            Path(self._place, name).mkdir()

    def start(self, name: str) -> None:
        """QMP is spoken over a socket that is connected before QEMU is there: QEMU alone is waited for."""
        shape = self._shapes[name]
        ours, its = socket.socketpair()
        monitor = ["-chardev", f"socket,id=qmp,fd={its.fileno()}", "-mon", "chardev=qmp,mode=control"]
        everywhere = set(cpus())
        self._running[name] = process = subprocess.Popen(
            [*self._argv[name], *monitor],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        its.close()
        with ours, ours.makefile("rwb") as stream:
            stream.readline()
            _ask(stream, "qmp_capabilities")
            for cpu in _ask(stream, "query-cpus-fast"):
                os.sched_setaffinity(cpu["thread-id"], {shape.pins[cpu["cpu-index"]]})
            if shape.dedicated:
                os.sched_setaffinity(process.pid, everywhere - set(shape.pins.values()))
            _ask(stream, "cont")

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def end(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait()


def _ask(stream: Any, command: str) -> Any:
    stream.write(json.dumps({"execute": command}).encode() + b"\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        if "return" in answer:
            return answer["return"]


def argv(kvmsup: Kvmsup, name: str) -> list[str]:
    """What kvmsup starts for guest `name`, read from a start of it."""
    kvmsup.start(name)
    try:
        return Path(f"/proc/{kvmsup.pid(name)}/cmdline").read_text().split("\0")[:-1]
    finally:
        kvmsup.end(name)


def cpu_seconds() -> float:
    """What all processes of the container have used so far; this program and its children are not in it."""
    with contextlib.closing(open("/sys/fs/cgroup/cpu.stat")) as stat:
        return int(stat.readline().split()[1]) / 1e6
