# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client of the guest's agent: against qemu-ga itself, hostile agents, and a channel that nobody listens at."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup import cli
from kvmsup.cli import freeze, status
from kvmsup.effects import agent, claims, glance, inside, qmp, ready
from kvmsup.entry import stop
from kvmsup.errors import KvmsupError, QmpError, Refusal
from kvmsup.model.claim import Claim
from kvmsup.model.ready import Said
from tests.unit import fake_qemu, real_qemu
from tests.unit.hosts import claim

SOCKET = "run/kvmsup/guests/web/agent"
Answer = Callable[[str, dict[str, Any]], bytes | None]


class FakeAgent:
    """An agent in a thread, which has file systems to freeze. `answer` comes first where it has something to say."""

    def __init__(self, path: Path, answer: Answer | None = None) -> None:
        self.answer = answer
        self.heard: list[str] = []
        self.frozen = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(path))
        self.listening.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listening.close()

    def _serve(self) -> None:
        """One client after the other, as QEMU lets them in."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
                    for line in lines:
                        connection.sendall(self._reply(json.loads(line.replace(b"\xff", b""))))

    def _reply(self, request: dict[str, Any]) -> bytes:
        command, arguments = request["execute"], request.get("arguments", {})
        self.heard.append(command)
        said = self.answer(command, arguments) if self.answer else None
        return self.usual(command, arguments) if said is None else said

    def usual(self, command: str, arguments: dict[str, Any]) -> bytes:
        if command == "guest-sync-delimited":
            return b"\xff" + said({"return": arguments["id"]})
        if command == "guest-shutdown":
            return b""
        if command.startswith("guest-fsfreeze"):
            if command != "guest-fsfreeze-status":
                self.frozen = command == "guest-fsfreeze-freeze"
                return said({"return": 2})
            return said({"return": "frozen" if self.frozen else "thawed"})
        return said({"error": {"class": "CommandNotFound", "desc": f"no {command}"}})


def said(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def returning(**values: object) -> Answer:
    """Answer these commands, written with underscores, with these values."""
    return lambda command, _: (
        said({"return": values[command.replace("-", "_")]}) if command.replace("-", "_") in values else None
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FakeAgent]]:
    made: list[FakeAgent] = []

    def started(answer: Answer | None = None) -> FakeAgent:
        made.append(FakeAgent(tmp_path / SOCKET, answer))
        return made[-1]

    yield started
    for one in made:
        one.close()


def connected(root: Path, patience: float = 5.0) -> contextlib.AbstractContextManager[agent.Agent]:
    return agent.connected(str(root), "web", os.getpid(), patience)


# ---- what is asked, and what may come back ----


def test_an_answer_to_somebody_before_is_passed_over(tmp_path: Path, start: Callable[..., FakeAgent]) -> None:
    def stale(command: str, arguments: dict[str, Any]) -> bytes | None:
        if command != "guest-sync-delimited":
            return None
        before = b'{"return": {}}\n{"return": 7\xff' + said({"return": 1}) + b"\xff" + said({"error": {"desc": "x"}})
        return before + b"\xff" + said({"return": arguments["id"]})

    start(stale)
    with connected(tmp_path) as talk:
        assert agent.freeze(talk) == 2


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "the agent in the guest has not answered in time"),
        (b"\xff", "the agent in the guest has not answered in time"),
        (b"\xff" + said({"return": 1}), "the agent in the guest has not answered in time"),
        (b"\xff" + said({"return": True}) * 3, "the agent in the guest has not answered in time"),
        (b"\xffhello\n", "the agent in the guest sent something that is not JSON"),
        (b"\xff" + b"[" * 100_000 + b"\n", "the agent in the guest sent something that is not JSON"),
        (b"\xff[]\n", "the agent in the guest sent something that is not a QMP message"),
        (b"x" * (9 << 20), "the agent in the guest sent a message of over 8 MiB"),
        (b"\xff" + b"x" * (9 << 20), "the agent in the guest sent a message of over 8 MiB"),
    ],
)
def test_an_agent_that_does_not_come_to_the_point(
    tmp_path: Path, start: Callable[..., FakeAgent], reply: bytes, why: str
) -> None:
    start(lambda *_: reply)
    began = time.monotonic()
    with pytest.raises(QmpError) as caught, connected(tmp_path, 0.5):
        pass
    assert str(caught.value) == why
    assert time.monotonic() - began < 5


def test_an_agent_that_refuses_with_orders(tmp_path: Path, start: Callable[..., FakeAgent]) -> None:
    start(lambda command, _: said({"error": {"desc": "no\x1b[2J\n"}}) if command == "guest-fsfreeze-freeze" else None)
    with connected(tmp_path) as talk, pytest.raises(qmp.Refused) as caught:
        agent.freeze(talk)
    assert str(caught.value) == "the agent in the guest refused guest-fsfreeze-freeze: no?[2J?"


def test_a_number_that_is_none(tmp_path: Path, start: Callable[..., FakeAgent]) -> None:
    start(returning(guest_fsfreeze_thaw="all"))
    with connected(tmp_path) as talk, pytest.raises(QmpError, match=r"with something that is not a number$"):
        agent.thaw(talk)


def test_identity(tmp_path: Path, start: Callable[..., FakeAgent]) -> None:
    addresses = [{"ip-address": "192.0.2.5", "prefix": 24}, {"ip-address": "fe80::1", "prefix": 64}]
    interface = {"name": "eth0", "hardware-address": "52:54:00:12:34:56", "ip-addresses": addresses, "x": 1}
    start(
        returning(
            guest_get_host_name={"host-name": "web"},
            guest_get_osinfo={"name": "Debian", "pretty-name": "Debian GNU/Linux 13 (trixie)"},
            guest_network_get_interfaces=[interface, {"name": "wg0"}],
        )
    )
    with connected(tmp_path) as talk:
        found = agent.identity(talk)
    eth0 = agent.Interface("eth0", "52:54:00:12:34:56", ("192.0.2.5/24", "fe80::1/64"))
    assert found == agent.Identity("web", "Debian GNU/Linux 13 (trixie)", (eth0, agent.Interface("wg0", "", ())))


@pytest.mark.parametrize(
    ("listed", "shown"),
    [
        (None, ()),
        (3, ()),
        ([3, None], (agent.Interface("", "", ()),) * 2),
        ([{"name": "a\x1b[2J\u202e" * 99}], (agent.Interface(("a?[2J?" * 99)[:100], "", ()),)),
        ([{"name": 3, "hardware-address": [], "ip-addresses": {}}], (agent.Interface("", "", ()),)),
        (
            [
                {
                    "ip-addresses": [
                        3,
                        {},
                        {"ip-address": "x; reboot", "prefix": 1},
                        {"ip-address": "10.0.0.1", "prefix": 99},
                    ]
                }
            ],
            (agent.Interface("", "", ()),),
        ),
        (
            [{"ip-addresses": [{"ip-address": "10.0.0.1", "prefix": 8}] * 40}] * 99,
            (agent.Interface("", "", ("10.0.0.1/8",) * 32),) * 64,
        ),
    ],
)
def test_an_identity_that_is_made_up(
    tmp_path: Path, start: Callable[..., FakeAgent], listed: object, shown: tuple[agent.Interface, ...]
) -> None:
    start(returning(guest_get_host_name=["x"], guest_get_osinfo={"name": 3}, guest_network_get_interfaces=listed))
    with connected(tmp_path) as talk:
        assert agent.identity(talk) == agent.Identity("", "", shown)


def test_a_second_client_waits_its_turn(tmp_path: Path, start: Callable[..., FakeAgent]) -> None:
    start()
    late = pytest.raises(QmpError, match=rf"/agent is in use by process {os.getpid()}: ")
    with connected(tmp_path), late, connected(tmp_path, 0.2):
        pass
    with connected(tmp_path) as talk:
        assert not agent.frozen(talk)


# ---- qemu-ga itself, and QEMU itself ----


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """qemu-ga where QEMU would be; it may do nothing to this machine. The root and its pid."""
    program = shutil.which("qemu-ga", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("qemu-ga is not installed")
    path = tmp_path / SOCKET
    path.parent.mkdir(parents=True)
    listed = subprocess.run([program, "-b", "help"], capture_output=True, text=True, check=True).stdout.split()
    kept = ("guest-sync-delimited", "guest-get-host-name", "guest-get-osinfo", "guest-network-get-interfaces")
    blocked = ",".join(name for name in listed if name not in (*kept, "guest-fsfreeze-status"))
    assert "guest-shutdown" in blocked and "guest-fsfreeze-freeze" in blocked
    command = [program, "-m", "unix-listen", "-p", str(path), "-b", blocked, "-t", str(tmp_path), "-l", "/dev/null"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not path.exists():
            time.sleep(0.01)
        yield str(tmp_path), process.pid
    finally:
        process.terminate()
        process.wait()


def test_the_real_agent(real: tuple[str, int]) -> None:
    root, pid = real
    for _ in range(2):  # clients come and go
        with agent.connected(root, "web", pid, 10) as talk:
            found = agent.identity(talk)
            assert not agent.frozen(talk)
            with pytest.raises(qmp.Refused, match=r"^the agent in the guest refused guest-fsfreeze-freeze: "):
                agent.freeze(talk)
        assert found.hostname == socket.gethostname()
        assert found.system
        assert "127.0.0.1/8" in next(one for one in found.interfaces if one.name == "lo").addresses
    told = inside.answered(root, seen(pid))
    assert told and told["state"] == "answers" and told["hostname"] == socket.gethostname()


def test_a_qemu_whose_guest_has_no_agent() -> None:
    """The channel as a guest has it, and nobody at its other end."""
    with real_qemu.running("-device", "virtio-serial-pci,id=consoles") as qemu:
        where = {"type": "unix", "data": {"path": f"{qemu.root}/{SOCKET}"}}
        with qemu.connected() as monitor:
            backend = {"type": "socket", "data": {"addr": where, "server": True, "wait": False}}
            monitor.execute("chardev-add", id="agent", backend=backend)
            name = {"name": "org.qemu.guest_agent.0", "bus": "consoles.0"}
            monitor.execute("device_add", driver="virtserialport", chardev="agent", **name)
            for _ in range(2):
                began = time.monotonic()
                told = inside.answered(qemu.root, seen(qemu.process.pid))
                assert told and told["state"] == "the agent in the guest has not answered in time"
                assert 0.9 < time.monotonic() - began < 9


# ---- status ----


def speaking() -> Claim:
    return claim("web")._replace(agent=True, cid=9, ready="yes")


def seen(pid: int = 0, held: Claim | None = None) -> glance.Seen:
    return glance.Seen(
        "web", "active", "running", "success", pid or os.getpid(), "", 0.0, "", held or speaking(), configured=True
    )


def test_status_of_a_guest_that_says_nothing_of_itself(tmp_path: Path) -> None:
    for one in (seen(held=claim("web")), seen()._replace(pid=0), seen()._replace(claim=None)):
        assert inside.said(str(tmp_path), one) is None
        assert inside.answered(str(tmp_path), one) is None


def test_status_lines(tmp_path: Path, start: Callable[..., FakeAgent]) -> None:
    root = str(tmp_path)
    addresses = [{"ip-address": "192.0.2.5", "prefix": 24}, {"ip-address": "192.0.2.6", "prefix": 24}]
    found = [{"name": "lo", "ip-addresses": addresses}, {"name": "eth0", "ip-addresses": addresses}, {"name": "eth1"}]
    fake = start(returning(guest_network_get_interfaces=found, guest_get_host_name={"host-name": "web"}))

    def lines() -> list[str]:
        return status._inside_lines({"ready": inside.said(root, seen()), "agent": inside.answered(root, seen())})

    agent_lines = ["  agent      web", "  address    eth0: 192.0.2.5/24, 192.0.2.6/24"]
    assert lines() == ["  ready      not yet", *agent_lines]
    os.makedirs(f"{root}/run/kvmsup/ready")
    ready.write(root, "web", Said(True, "Ready."))
    fake.frozen = True
    assert lines() == ["  ready      yes: Ready.", "  agent      file systems are frozen"]
    assert status._inside_lines({"ready": None, "agent": None}) == []


# ---- stop ----


def test_stop_asks_the_agent_after_the_power_button() -> None:
    """A guest that ignores its button, frozen; the agent's word ends it."""
    with fake_qemu.running("ignore-powerdown") as fake:
        over = threading.Event()

        def answer(command: str, _: object) -> bytes | None:
            if command == "guest-shutdown":
                fake.process.kill()
                over.set()
            return None

        asked = FakeAgent(Path(fake.root, SOCKET), answer)
        asked.frozen = True
        try:
            began = time.monotonic()
            stopped(fake, os.getpid())
            assert over.is_set() and time.monotonic() - began < 9
            assert asked.heard == [
                "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-shutdown",
            ]  # fmt: skip
        finally:
            asked.close()


def stopped(fake: fake_qemu.Running, agent_pid: int) -> None:
    """stop, to which the agent of this process is that of QEMU."""
    with pytest.MonkeyPatch.context() as patched:
        real = agent.connected
        patched.setattr(agent, "connected", lambda root, guest, _, patience: real(root, guest, agent_pid, patience))
        stop.run("web", fake.pid, fake.root, 10.0, has_agent=True)


def test_stop_is_no_slower_for_an_agent_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_AGENT_SECONDS", 8.0)
    with fake_qemu.running("good") as fake:
        asked = FakeAgent(Path(fake.root, SOCKET), lambda *_: b"")
        try:
            began = time.monotonic()
            stop.run("web", fake.pid, fake.root, 10.0, has_agent=True)
            assert time.monotonic() - began < 6
            assert fake.process.wait(10) == 0
        finally:
            asked.close()


# ---- freeze ----


@pytest.fixture
def root(tmp_path: Path) -> str:
    os.makedirs(f"{tmp_path}/run/kvmsup/claims")
    claims.write(str(tmp_path), speaking())
    return str(tmp_path)


def frozen(root: str, *command: str, as_json: bool = False) -> int:
    return freeze.frozen(root, "web", os.getpid(), command, as_json=as_json)


def test_a_command_runs_while_the_guest_is_frozen(
    root: str, start: Callable[..., FakeAgent], capfd: pytest.CaptureFixture[str]
) -> None:
    fake = start()
    assert frozen(root, "sh", "-c", "echo a snapshot; exit 3", as_json=True) == 3
    assert not fake.frozen
    assert [name.removeprefix("guest-fsfreeze-") for name in fake.heard if "fsfreeze" in name] == [
        "status", "freeze", "status", "thaw",
    ]  # fmt: skip
    printed = capfd.readouterr()
    assert printed.err == "a snapshot\n"
    told = json.loads(printed.out)
    assert {**told, "seconds": 0} == {"guest": "web", "file_systems": 2, "seconds": 0, "status": 3, "thawed": True}


def test_a_closed_standard_output_is_none_to_flush(
    root: str, start: Callable[..., FakeAgent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = start()
    monkeypatch.setattr(sys, "stdout", None)
    for as_json in (False, True):
        ran = tmp_path / f"ran-{as_json}"
        assert frozen(root, "touch", str(ran), as_json=as_json) == 0
        assert ran.exists() and not fake.frozen


def test_a_closed_standard_error_keeps_no_command_from_running(
    root: str, start: Callable[..., FakeAgent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With --json that is where the command's output goes."""
    fake = start()
    monkeypatch.setattr(freeze, "run", lambda asked: frozen(root, *asked.command, as_json=asked.json))
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["freeze", "--json", "web", "touch", str(tmp_path / "ran")]) == 0
    sys.stderr.close()
    assert (tmp_path / "ran").exists() and not fake.frozen


def test_no_such_command(root: str, start: Callable[..., FakeAgent]) -> None:
    fake = start()
    with pytest.raises(KvmsupError, match=r"^no-such-command: No such file or directory$"):
        frozen(root, "no-such-command")
    assert not fake.frozen and "guest-fsfreeze-thaw" in fake.heard


def test_a_guest_that_cannot_be_frozen(root: str, start: Callable[..., FakeAgent], tmp_path: Path) -> None:
    fake = start(lambda command, _: said({"error": {"desc": "no"}}) if command == "guest-fsfreeze-freeze" else None)
    with pytest.raises(KvmsupError) as caught:
        frozen(root, "touch", f"{tmp_path}/ran")
    why = "the agent in the guest refused guest-fsfreeze-freeze: no"
    assert str(caught.value) == f"web could not be frozen: {why}"
    assert not Path(tmp_path, "ran").exists()
    assert "guest-fsfreeze-thaw" not in fake.heard


def test_an_agent_that_is_not_there_is_not_waited_for_twice(
    root: str, start: Callable[..., FakeAgent], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start(lambda *_: b"")
    monkeypatch.setattr(freeze, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(
        KvmsupError, match=r"^web could not be frozen: the agent in the guest has not answered in time$"
    ):
        frozen(root, "true")
    assert capfd.readouterr().err == ""


def test_a_freeze_that_takes_too_long_is_undone_when_it_is_done(
    root: str, start: Callable[..., FakeAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(command: str, _: object) -> None:
        if command == "guest-fsfreeze-freeze":
            time.sleep(2)

    fake = start(slow)
    monkeypatch.setattr(freeze, "_FREEZE_SECONDS", 0.2)
    with pytest.raises(
        KvmsupError, match=r"^web could not be frozen: the agent in the guest has not answered in time$"
    ):
        frozen(root, "true")
    assert fake.heard[-1] == "guest-fsfreeze-thaw" and not fake.frozen
    # As long as an agent may still be at what it was asked for first, and some time more.
    monkeypatch.undo()
    assert freeze._THAW_SECONDS > 2 * freeze._FREEZE_SECONDS


def test_a_guest_that_somebody_thawed_meanwhile(
    root: str, start: Callable[..., FakeAgent], capfd: pytest.CaptureFixture[str]
) -> None:
    """Such as its stop: what was made on the host is not what was asked for."""
    fake = start()
    with in_a_process(root, "sleep", "1") as process:
        wait_for(lambda: fake.frozen)
        fake.frozen = False
        assert process.wait(20) == 1
    assert capfd.readouterr().err == (
        "kvmsup: web was thawed by somebody else meanwhile: what has been made of its disks may not be whole\n"
    )


def test_a_guest_that_ends_meanwhile(capfd: pytest.CaptureFixture[str]) -> None:
    with real_qemu.running() as machine:
        pid = machine.process.pid
    assert not freeze._thaw("", "web", pid, freeze._ASKED + freeze._FROZEN)
    assert capfd.readouterr().err == "kvmsup: web has ended while it was frozen\n"


def test_a_guest_that_does_not_thaw(
    root: str, start: Callable[..., FakeAgent], capfd: pytest.CaptureFixture[str]
) -> None:
    start(lambda command, _: said({"error": {"desc": "no"}}) if command == "guest-fsfreeze-thaw" else None)
    assert frozen(root, "true") == 1
    assert capfd.readouterr().err == (
        "kvmsup: web may still be frozen: the agent in the guest refused guest-fsfreeze-thaw: no\n"
        "  hint: kvmsup freeze web true tries again\n"
    )


def test_what_was_left_frozen_is_thawed_first(
    root: str, start: Callable[..., FakeAgent], capfd: pytest.CaptureFixture[str]
) -> None:
    fake = start()
    fake.frozen = True
    assert frozen(root, "true") == 0
    assert [name for name in fake.heard if "fsfreeze" in name][:3] == [
        "guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-fsfreeze-freeze",
    ]  # fmt: skip
    assert not fake.frozen
    assert capfd.readouterr().err == "kvmsup: web was left frozen: it is thawed, and frozen again\n"


@contextlib.contextmanager
def in_a_process(root: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """kvmsup freeze as a process of its own, leader of its group; all of which is gone afterwards."""
    code = (
        "import sys; from kvmsup.cli import freeze;"
        "sys.exit(freeze.frozen(sys.argv[1], 'web', int(sys.argv[2]), sys.argv[3:], as_json=False))"
    )
    # Whoever runs tests in the background of a shell has them ignore SIGINT, and with them what they start.
    words = ["env", "--default-signal=INT", sys.executable, "-c", code, root, str(os.getpid()), *command]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[2], start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_guest_is_thawed_when_the_command_is_killed(root: str, start: Callable[..., FakeAgent]) -> None:
    """kill -9 in the middle; nobody else may freeze meanwhile, also not after a reload, which writes another claim."""
    fake = start()
    with in_a_process(root, "sleep", "60") as process:
        wait_for(lambda: fake.frozen)
        claims.write(root, speaking())
        with pytest.raises(
            Refusal, match=r"^web is frozen by another kvmsup freeze\n  hint: wait until that has ended$"
        ):
            frozen(root, "true")
        assert fake.frozen
        process.kill()
        wait_for(lambda: not fake.frozen)
    wait_for(lambda: frozen_again(root))


def test_the_guest_is_thawed_when_the_keeper_is_killed(root: str, start: Callable[..., FakeAgent]) -> None:
    fake = start()
    with in_a_process(root, "sleep", "1") as process:
        wait_for(lambda: fake.frozen)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert process.wait(20) == 0
    assert not fake.frozen


def test_an_agent_that_does_not_answer_holds_nobody_up(
    root: str, start: Callable[..., FakeAgent], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as somebody who makes copies of one guest after the other. The keeper thaws when it can."""
    go_on = threading.Event()

    def slow(command: str, _: object) -> None:
        if command == "guest-fsfreeze-thaw":
            go_on.wait(20)

    fake = start(slow)
    monkeypatch.setattr(freeze, "_WAIT_SECONDS", 0.2)
    assert frozen(root, "true") == 1
    said = r"kvmsup: web may still be frozen: the agent has not answered for 0 s; process \d+ goes on trying\n"
    assert re.fullmatch(said, capfd.readouterr().err)
    assert fake.frozen
    with pytest.raises(Refusal):
        frozen(root, "true")
    go_on.set()
    wait_for(lambda: not fake.frozen)
    os.wait()


def test_ctrl_c_while_it_is_thawed(
    root: str, start: Callable[..., FakeAgent], capfd: pytest.CaptureFixture[str]
) -> None:
    """The first one waits for the keeper, the next one leaves that to itself."""
    go_on = threading.Event()

    def slow(command: str, _: object) -> None:
        if command == "guest-fsfreeze-thaw":
            go_on.wait(20)

    fake = start(slow)
    with in_a_process(root, "true") as process:
        wait_for(lambda: "guest-fsfreeze-thaw" in fake.heard)
        for _ in range(2):
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    assert "OSError" not in capfd.readouterr().err
    assert fake.frozen
    go_on.set()
    wait_for(lambda: not fake.frozen)


def frozen_again(root: str) -> bool:
    """Whether the lock is free; the keeper ends a moment after it has thawed."""
    try:
        return frozen(root, "true") == 0
    except Refusal:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_freeze_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    from kvmsup import cli

    for arguments in (["freeze", "web"], ["freeze", "web", "--"]):
        assert cli.main(arguments) == 1
        assert capsys.readouterr().err == (
            "kvmsup: there is no command to run meanwhile\n  hint: such as: kvmsup freeze web lvcreate …\n"
        )
