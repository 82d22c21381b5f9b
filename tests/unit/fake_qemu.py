# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU that misbehaves by name: `fake_qemu.py SOCKET BEHAVIOUR VCPUS`, a real process with a thread for each vCPU.

Tests start it with `running`, or have it started as the program that `program` makes; everything below the marked line
runs in the process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn


class Running(NamedTuple):
    """A fake that has been started: the root below which its sockets are, and its pid."""

    root: str
    pid: int
    process: subprocess.Popen[bytes]

    @property
    def path(self) -> str:
        return f"{self.root}/run/kvmsup/guests/web/control.qmp"


@contextlib.contextmanager
def running(behaviour: str, vcpus: int = 2) -> Iterator[Running]:
    """A fake QEMU for the guest web; killed and reaped at the end."""
    root = tempfile.mkdtemp(prefix="q-")  # short, because a socket's path may have 107 bytes
    os.makedirs(f"{root}/run/kvmsup/guests/web")
    os.symlink("/proc", f"{root}/proc")
    path = f"{root}/run/kvmsup/guests/web/control.qmp"
    process = subprocess.Popen([sys.executable, "-I", "-S", __file__, path, behaviour, str(vcpus)])
    try:
        yield Running(root, process.pid, process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(root)


@contextlib.contextmanager
def program(behaviour: str) -> Iterator[str]:
    """The path of a program that is started as QEMU is, by any user, and speaks over the descriptor it is given."""
    directory = tempfile.mkdtemp(prefix="q-")
    os.chmod(directory, 0o755)
    for file in (__file__, str(RECORDED)):
        shutil.copy(file, directory)
    path, python = f"{directory}/qemu", os.path.realpath(sys.executable)
    with open(path, "w", encoding="utf-8") as script:
        copy = f"{directory}/{os.path.basename(__file__)}"
        script.write(f'#!/bin/sh\nexec {python} -I -S {copy} --program {behaviour} "$@"\n')
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(directory)


# ---- in its own process ----

# What QEMU 10.0 under KVM on an emulated AMD host, and QEMU 7.2 emulating, said about some of their models.
RECORDED = Path(__file__).with_name("cpu_models.json")

# What a terminal would take for one, and far too much of it.
ORDER = "a\x1b[2J\u202e" * 1000

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}}
Reply = dict[str, Any]


class Qemu:
    """One client, answered as QEMU would; the behaviours below change that."""

    def __init__(self, connection: socket.socket, tids: list[int]) -> None:
        self.connection = connection
        self.lines = connection.makefile("rb")
        self.tids = tids
        self.arguments: dict[str, Any] = {}  # of the last command

    def say(self, message: object) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def event(self, name: str) -> None:
        self.say({"event": name, "timestamp": {"seconds": 0, "microseconds": 0}})

    def heard(self) -> str:
        line = self.lines.readline()
        request = json.loads(line) if line else {"execute": ""}
        self.arguments = request.get("arguments", {})
        return str(request["execute"])

    def cpus(self) -> list[Reply]:
        return [
            {"cpu-index": index, "thread-id": tid, "target": "x86_64", "props": {"thread-id": 0, "core-id": index}}
            for index, tid in enumerate(self.tids)
        ]

    def serve(self, answer: Callable[[str], object] | None = None, until: str = "") -> None:
        """Greet and answer every command, `answer` first where it has something to say; stop having heard `until`."""
        self.say(GREETING)
        while (command := self.heard()) and command != until:
            reply = answer(command) if answer else None
            self.say({"return": self.usual(command)} if reply is None else reply)
            if reply is None and command in ("system_powerdown", "quit"):
                # QEMU ends whether or not anybody still listens.
                with contextlib.suppress(OSError):
                    self.event("SHUTDOWN")
                os._exit(0)

    def usual(self, command: str) -> object:
        return self.cpus() if command == "query-cpus-fast" else {}


def _sleep() -> NoReturn:
    while True:
        time.sleep(60)


def refuse(refused: str) -> Callable[[Qemu], None]:
    error = {"error": {"class": "GenericError", "desc": f"{refused} is not for you"}}
    return lambda qemu: qemu.serve(lambda command: error if command == refused else None)


def list_vcpus(change: Callable[[list[Reply]], object]) -> Callable[[Qemu], None]:
    return lambda qemu: qemu.serve(
        lambda command: {"return": change(qemu.cpus())} if command == "query-cpus-fast" else None
    )


def recorded(version: str, **changed: object) -> Callable[[Qemu], None]:
    """Answer about CPU models as that QEMU did; `changed` are other answers, by command with underscores."""
    said = json.loads(RECORDED.read_text("utf-8"))[version]
    stands_for = {one["name"]: one.get("alias-of", one["name"]) for one in said["definitions"]}

    def expand(name: str) -> object:
        if name == "max":
            return dict.fromkeys(said["bools of max"].split(), False) | said["others of max"]
        on = f"{said['on in all']} {said['on beyond'].get(stands_for[name], '')}"
        return dict.fromkeys(said["bools of max"].split(), False) | dict.fromkeys(on.split(), True)

    def behave(qemu: Qemu) -> None:
        def answer(command: str) -> object:
            if command.replace("-", "_") in changed:
                return {"return": changed[command.replace("-", "_")]}
            if command == "query-cpu-definitions":
                return {"return": said["definitions"]}
            if command == "query-cpu-model-expansion":
                name = qemu.arguments["model"]["name"]
                return {"return": {"model": {"name": name, "props": expand(name)}}}
            if command == "query-cpus-fast":
                return {"return": said["cpus"]}
            if command == "qom-get":
                return {"return": said["EPYC,+topoext,-vme"][qemu.arguments["property"]]}
            return None

        qemu.serve(answer)

    return behave


def raw(data: bytes) -> Callable[[Qemu], None]:
    """Greet, hear a command and answer with `data`."""

    def behave(qemu: Qemu) -> None:
        qemu.serve(until="qmp_capabilities")
        qemu.connection.sendall(data)

    return behave


def flood(piece: bytes) -> Callable[[Qemu], None]:
    """Greet, hear a command and answer with `piece` for ever."""

    def behave(qemu: Qemu) -> None:
        qemu.serve(until="qmp_capabilities")
        while True:
            qemu.connection.sendall(piece)

    return behave


def hang_up(*, after: str = "", die: bool = False, half: bytes = b"") -> Callable[[Qemu], None]:
    def behave(qemu: Qemu) -> None:
        if after:
            qemu.serve(until=after)
            qemu.connection.sendall(half)
        if die:
            os._exit(1)
        qemu.connection.shutdown(socket.SHUT_RDWR)

    return behave


def slow(qemu: Qemu) -> None:
    def answer(_: str) -> None:
        time.sleep(0.1)
        for number in range(3):
            qemu.event(f"RTC_CHANGE_{number}")

    qemu.serve(answer)


def huge(command: str) -> Reply | None:
    return {"return": {}, "x": "y" * (4 << 20)} if command == "x" else None


def late_thread(qemu: Qemu) -> None:
    """A thread is born by the first guest instruction, with the mask of the vCPU that runs it."""

    def answer(command: str) -> None:
        if command == "cont":
            threading.Thread(target=_sleep, daemon=True).start()

    qemu.serve(answer)


def stubborn(*ignored: str) -> Callable[[Qemu], None]:
    """Accept the commands of `ignored` without doing anything about them."""
    return lambda qemu: qemu.serve(lambda command: {"return": {}} if command in ignored else None)


def list_status(status: object) -> Callable[[Qemu], None]:
    return lambda qemu: qemu.serve(lambda command: {"return": status} if command == "query-status" else None)


def in_state(state: str, woken_by: str = "") -> Callable[[Qemu], None]:
    """A guest in that state, in which it hears no power button; `woken_by` is the command that makes it run."""

    def behave(qemu: Qemu) -> None:
        now = [state]

        def answer(command: str) -> object:
            if command == woken_by:
                now[0] = "running"
            if command == "query-status":
                return {"return": {"status": now[0], "running": now[0] == "running"}}
            return {"return": {}} if command == "system_powerdown" and now[0] != "running" else None

        qemu.serve(answer)

    return behave


def answers_without_end(qemu: Qemu) -> None:
    """Answer the first command, and every other one a thousand times a moment, asked or not."""
    qemu.serve(until="qmp_capabilities")
    while True:
        qemu.connection.sendall(b'{"return": {}}\n' * 1000)


def resets_late(qemu: Qemu) -> None:
    """As a guest that has its clock set all the time."""

    def answer(command: str) -> None:
        if command == "system_reset":
            qemu.connection.sendall(b'{"event": "RTC_CHANGE"}\n' * 9000 + b'{"return": {}}\n{"event": "RESET"}\n')

    qemu.serve(answer)


def byte_by_byte(qemu: Qemu) -> None:
    """An answer that never ends, and takes its time."""
    qemu.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    qemu.serve(until="qmp_capabilities")
    while True:
        qemu.connection.send(b"x")


def never_reads(qemu: Qemu) -> None:
    """Fill the other side's buffers and its own, so that nothing can be sent to it."""
    qemu.say(GREETING)
    while True:
        qemu.event("RTC_CHANGE")


def deaf(_: Qemu) -> None:
    """Neither a monitor nor SIGTERM is heard."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def uncounted(after: int) -> Callable[[Qemu], None]:
    """Two vCPUs in eight places until one is to be added; then `after` of them are taken, in as many places."""

    def places(count: int, there: int) -> list[Reply]:
        taken = [{"qom-path": "/machine/x"}] * there + [{}] * (count - there)
        return [{"type": "x", "props": {"core-id": core}, **one} for core, one in enumerate(taken)]

    def behave(qemu: Qemu) -> None:
        now = [places(8, 2)]

        def answer(command: str) -> object:
            if command == "device_add":
                now[0] = places(after, after)
            return {"return": now[0]} if command == "query-hotpluggable-cpus" else None

        qemu.serve(answer)

    return behave


def first(cpus: list[Reply], **changed: object) -> list[Reply]:
    return [{**cpus[0], **{key.replace("_", "-"): value for key, value in changed.items()}}, *cpus[1:]]


BEHAVIOURS: dict[str, Callable[[Qemu], object]] = {
    "good": Qemu.serve,
    "slow": slow,
    "late-thread": late_thread,
    "silence": lambda _: None,
    "silence-after-greeting": lambda qemu: qemu.serve(until="qmp_capabilities"),
    "silence-after-cont": lambda qemu: qemu.serve(until="cont"),
    "hang-up": hang_up(),
    "hang-up-after-greeting": hang_up(after="qmp_capabilities"),
    "hang-up-in-a-line": hang_up(after="qmp_capabilities", half=b'{"return"'),
    "die": hang_up(after="qmp_capabilities", die=True),
    "die-at-threads": hang_up(after="query-cpus-fast", die=True),
    "die-at-cont": hang_up(after="cont", die=True),
    "die-at-powerdown": hang_up(after="system_powerdown", die=True),
    "paused": in_state("paused", "cont"),
    "io-error": in_state("io-error", "cont"),
    "asleep": in_state("suspended", "system_wakeup"),
    "internal-error": in_state("internal-error"),
    "panicked": in_state("guest-panicked"),
    "prelaunch": in_state("prelaunch"),
    "state-of-nothing": list_status(3),
    "state-unknown": list_status({"status": ["x"]}),
    "bad-greeting": lambda qemu: qemu.say({"hello": 1}),
    "not-json": raw(b"hello\n"),
    "not-utf-8": raw(b'{"return": "\xff"}\n'),
    "not-an-object": raw(b"[1]\n"),
    "empty-line": raw(b"\n"),
    "deep": raw(b'{"return": ' + b"[" * 100_000 + b"\n"),
    "digits": raw(b'{"return": ' + b"1" * 5000 + b"}\n"),
    "no-return": raw(b'{"id": 1}\n'),
    "error-without-words": raw(b'{"error": 3}\n'),
    "huge-message": lambda qemu: qemu.serve(huge),
    "endless-line": flood(b"x" * 65536),
    "events-flood": flood(b'{"event": "RTC_CHANGE"}\n' * 100),
    "never-reads": never_reads,
    "deaf": deaf,
    "answers-without-end": answers_without_end,
    "resets-late": resets_late,
    "byte-by-byte": byte_by_byte,
    "refuse-cpus": refuse("query-cpus-fast"),
    "refuse-with-orders": lambda qemu: qemu.serve(
        lambda command: {"error": {"desc": "no\ud800\x1b[2J\n"}} if command == "query-cpus-fast" else None
    ),
    "refuse-cont": refuse("cont"),
    "refuse-powerdown": refuse("system_powerdown"),
    "ignore-powerdown": stubborn("system_powerdown"),
    "ignore-everything": stubborn("system_powerdown", "quit"),
    "vcpu-missing": list_vcpus(lambda cpus: cpus[1:]),
    "vcpu-too-many": list_vcpus(lambda cpus: [*cpus, {"cpu-index": len(cpus), "thread-id": os.getpid()}]),
    "vcpus-by-the-thousand": list_vcpus(
        lambda _: [{"cpu-index": 2 * number, "thread-id": number} for number in range(20_000)]
    ),
    "no-vcpus": list_vcpus(lambda _: []),
    "vcpu-negative": list_vcpus(lambda cpus: first(cpus, cpu_index=-1)),
    "same-thread": list_vcpus(lambda cpus: first(cpus, thread_id=cpus[1]["thread-id"])),
    "foreign-thread": list_vcpus(lambda cpus: first(cpus, thread_id=1)),
    "vcpus-not-a-list": list_vcpus(lambda _: 3),
    "vcpus-of-strings": list_vcpus(lambda _: ["x"]),
    "vcpus-without-tid": list_vcpus(lambda _: [{"cpu-index": 0}]),
    "iothread-of-orders": lambda qemu: qemu.serve(
        lambda command: {"return": [{"id": "a\x1b[2J", "thread-id": 1}]} if command == "query-iothreads" else None
    ),
    "models-of-orders": recorded(
        "10.0", query_cpu_definitions=[{"name": ORDER, "alias-of": ORDER, "unavailable-features": [ORDER, ORDER]}]
    ),
    "models-10.0": recorded("10.0"),
    "models-7.2": recorded("7.2"),
    "models-not-a-list": recorded("10.0", query_cpu_definitions=3),
    "models-without-names": recorded("10.0", query_cpu_definitions=[{"typename": "x"}]),
    "models-of-strings": recorded("10.0", query_cpu_definitions=["x"]),
    "missing-not-a-list": recorded("10.0", query_cpu_definitions=[{"name": "x", "unavailable-features": 3}]),
    "expansion-of-nothing": recorded("10.0", query_cpu_model_expansion={}),
    "expansion-not-a-table": recorded("10.0", query_cpu_model_expansion={"model": {"props": 3}}),
    "refuse-models": refuse("query-cpu-definitions"),
    "no-vcpu": recorded("10.0", query_cpus_fast=[]),
    "vcpu-without-path": recorded("10.0", query_cpus_fast=[{"cpu-index": 0}]),
    "lacks-not-a-list": recorded("10.0", qom_get=3),
    "vcpus-vanish": uncounted(0),
    "vcpus-without-end": uncounted(1000),
    "vcpus-infinite": list_vcpus(lambda cpus: first(cpus, cpu_index=float("inf"))),
}


def main(path: str, behaviour: str, vcpus: int) -> None:
    tids: list[int] = []
    for _ in range(vcpus):
        thread = threading.Thread(target=_sleep, daemon=True)
        thread.start()
        tids.append(thread.native_id or 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        connections = []
        while True:  # one client after the other, as QEMU has it; none is hung up on
            connection, _ = listener.accept()
            connections.append(connection)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                BEHAVIOURS[behaviour](Qemu(connection, tids))


def speak(behaviour: str, words: list[str]) -> None:
    """As QEMU does with `-chardev socket,id=qmp,fd=N`, or say why not."""
    if behaviour == "no-kvm":
        print("Could not access KVM kernel module: No such file or directory", file=sys.stderr)
        sys.exit("qemu-system-x86_64: failed to initialize kvm: No such file or directory")
    descriptor = next(word.rpartition("fd=")[2] for word in words if word.startswith("socket,"))
    with (
        socket.socket(fileno=int(descriptor)) as connection,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        BEHAVIOURS[behaviour](Qemu(connection, []))
        _sleep()


if __name__ == "__main__" and sys.argv[1] == "--program":
    speak(sys.argv[2], sys.argv[3:])
elif __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
