# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three ways to start a guest and to end it at once: kvmsup, libvirt, and QEMU by itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.cli.run import VIRSH, run
from bench.speed.inside.guests import Shape, cpus

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


class Monitor:
    """QMP on a socket that is connected, once QEMU is ready for commands."""

    def __init__(self, talk: socket.socket) -> None:
        self._stream = talk.makefile("rw")
        self._stream.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str) -> Any:
        """What it returned. Raises RuntimeError when QEMU refuses."""
        self._stream.write(json.dumps({"execute": command}) + "\n")
        self._stream.flush()
        while "return" not in (answer := json.loads(self._stream.readline())):
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]


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
        with self.halted(name) as qemu:
            self.go(name, qemu)

    @contextlib.contextmanager
    def halted(self, name: str) -> Iterator[Monitor]:
        """QEMU has built the machine, and is told what to do; its guest does not run yet.

        QMP is spoken over a socket that is connected before QEMU is there: QEMU alone is waited for.
        """
        ours, its = socket.socketpair()
        monitor = ["-chardev", f"socket,id=qmp,fd={its.fileno()}", "-mon", "chardev=qmp,mode=control"]
        null = subprocess.DEVNULL
        words = [*self._argv[name], *monitor]
        self._running[name] = subprocess.Popen(words, pass_fds=[its.fileno()], stdin=null, stdout=null, stderr=null)
        its.close()
        with ours:
            yield Monitor(ours)

    def go(self, name: str, qemu: Monitor) -> None:
        """Pin its threads, and let the guest run."""
        shape = self._shapes[name]
        for cpu in qemu.ask("query-cpus-fast"):
            os.sched_setaffinity(cpu["thread-id"], {shape.pins[cpu["cpu-index"]]})
        if shape.dedicated:
            os.sched_setaffinity(self.pid(name), set(cpus()) - set(shape.pins.values()))
        qemu.ask("cont")

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def end(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait()


def attached(name: str) -> tuple[int, int]:
    """When attach was begun and ended at the guest's last start, in microseconds on CLOCK_MONOTONIC."""
    path = f"/org/freedesktop/systemd1/unit/kvm_40{name}_2eservice"
    what = ("org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service", "ExecStartPost")
    found = json.loads(run("busctl", "--json=short", "get-property", *what))["data"][0]
    return found[4], found[6]  # org.freedesktop.systemd1(5)


def argv(kvmsup: Kvmsup, name: str) -> list[str]:
    """What kvmsup starts for guest `name`, read from a start of it."""
    kvmsup.start(name)
    try:
        return Path(f"/proc/{kvmsup.pid(name)}/cmdline").read_text().split("\0")[:-1]
    finally:
        kvmsup.end(name)


def cpu_seconds() -> float:
    """What all processes of the container have used so far; this program and its children are not in it."""
    with open("/sys/fs/cgroup/cpu.stat") as stat:
        return int(stat.readline().split()[1]) / 1e6
