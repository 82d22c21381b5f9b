# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup console on a real terminal and on pipes, joined to a real QEMU's chardev or to a socket that misbehaves."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsup import cli
from kvmsup.cli import console
from kvmsup.effects import peers, systemctl
from kvmsup.errors import KvmsupError
from tests.unit import real_qemu

ROOT = Path(__file__).parents[2]
# As the verb is started, with the guest's socket where the test has it, and the test as its QEMU.
PROGRAM = """
import os, sys, types
sys.path.insert(0, sys.argv[1])
from kvmsup import cli
from kvmsup.effects import glance
from kvmsup.plan import paths
glance.running = lambda root, guest: types.SimpleNamespace(pid=os.getppid())
paths.socket = lambda guest, name: sys.argv[2]
sys.exit(cli.main(["console", "web", *sys.argv[3:]]))
"""


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(2)
        server.settimeout(20)
        yield server


def accept(server: socket.socket) -> socket.socket:
    guest, _ = server.accept()
    guest.settimeout(20)
    return guest


def command(path: Path, *options: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(ROOT), str(path), *options]


class Terminal:
    """A terminal of 50 by 132 with the verb in it."""

    def __init__(self, path: Path, *options: str) -> None:
        self.keyboard, self.screen = pty.openpty()
        termios.tcsetwinsize(self.screen, (50, 132))
        self.before = termios.tcgetattr(self.screen)
        self.process = subprocess.Popen(
            command(path, *options),
            env=os.environ | {"TERM": "xterm"},
            start_new_session=True,
            stdin=self.screen,
            stdout=self.screen,
            stderr=self.screen,
        )
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        while text not in self.shown:
            assert select.select([self.keyboard], [], [], 20)[0], self.shown
            self.shown += os.read(self.keyboard, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def restored(self) -> bool:
        return termios.tcgetattr(self.screen) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)
        os.close(self.screen)


@contextlib.contextmanager
def terminal(path: Path, *options: str) -> Iterator[Terminal]:
    found = Terminal(path, *options)
    try:
        yield found
    finally:
        found.close()


def test_both_ways_and_the_key_that_leaves(tmp_path: Path) -> None:
    with listening(tmp_path / "c") as server, terminal(tmp_path / "c") as joined:
        guest = accept(server)
        with guest:
            joined.wait_for(b"console of web; Ctrl-] leaves it; its shell learns the size by: stty rows 50 cols 132")
            guest.sendall(b"login: ")
            joined.wait_for(b"login: ")
            assert not joined.restored()
            joined.type(b"root\x03\r")  # nothing of it is the terminal's
            assert guest.recv(100) == b"root\x03\r"
            joined.type(b"x\x1dy")
            assert joined.process.wait(20) == 0
            assert guest.recv(100) == b"x"
            assert joined.restored()
            joined.wait_for(b"\x1b[!p")


def test_another_key(tmp_path: Path) -> None:
    with listening(tmp_path / "c") as server, terminal(tmp_path / "c", "--detach-key", "^t") as joined:
        guest = accept(server)
        with guest:
            joined.wait_for(b"Ctrl-T leaves it")
            joined.type(b"\x1d")
            assert guest.recv(100) == b"\x1d"
            joined.type(b"\x14")
            assert joined.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_put_back_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    with listening(tmp_path / "c") as server, terminal(tmp_path / "c") as joined:
        guest = accept(server)
        with guest:
            guest.sendall(b"login: ")
            joined.wait_for(b"login: ")
            joined.process.send_signal(number)
            assert joined.process.wait(20) == 128 + number
            assert joined.restored()


def test_the_terminal_is_raw_again_after_a_stop(tmp_path: Path) -> None:
    with listening(tmp_path / "c") as server, terminal(tmp_path / "c") as joined:
        guest = accept(server)
        with guest:
            guest.sendall(b"login: ")
            joined.wait_for(b"login: ")
            joined.process.send_signal(signal.SIGSTOP)
            termios.tcsetattr(joined.screen, termios.TCSANOW, joined.before)  # as a shell does
            joined.process.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + 20
            while joined.restored():
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_the_guest_ends(tmp_path: Path) -> None:
    with listening(tmp_path / "c") as server, terminal(tmp_path / "c") as joined:
        guest = accept(server)
        guest.sendall(b"bye")
        guest.close()
        assert joined.process.wait(20) == 0
        joined.wait_for(b"web has closed its console")
        assert joined.restored()


def test_a_guest_that_takes_nothing_can_be_left(tmp_path: Path) -> None:
    with listening(tmp_path / "c") as server, terminal(tmp_path / "c") as joined:
        guest = accept(server)
        with guest:
            guest.sendall(b"login: ")
            joined.wait_for(b"login: ")
            for _ in range(200):
                joined.type(b"x" * 4000)
            joined.type(b"\x1d")
            assert joined.process.wait(20) == 0


def test_off_a_terminal_it_is_a_pipe(tmp_path: Path) -> None:
    """Every byte arrives, in both directions, and the end of the input is not the end of the output."""
    sent, answered = bytes(range(256)) * 2000, os.urandom(500_000)
    with listening(tmp_path / "c") as server, open(tmp_path / "in", "wb") as file:
        file.write(sent)
        file.flush()
        options = ("--detach-key", "none")
        with open(tmp_path / "in", "rb") as given, open(tmp_path / "out", "wb") as out:
            process = subprocess.Popen(
                command(tmp_path / "c", *options), stdin=given, stdout=out, stderr=subprocess.PIPE
            )
        guest = accept(server)
        with guest:
            heard = b""
            while len(heard) < len(sent):
                data = guest.recv(65536)
                assert data
                heard += data
            guest.sendall(answered)
        said = process.communicate(timeout=20)[1]
    assert (heard, said, process.returncode) == (sent, b"web has closed its console\n", 0)
    assert (tmp_path / "out").read_bytes() == answered


def joinable() -> contextlib.AbstractContextManager[real_qemu.Running]:
    """A QEMU whose hvc0 is on a socket, as a guest's is."""
    return real_qemu.running(
        *("-chardev", "socket,id=hvc0,path=console,server=on,wait=off", "-device", "virtio-serial-pci,id=consoles"),
        *("-device", "virtconsole,chardev=hvc0,bus=consoles.0"),
    )


def test_the_second_is_told_who_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU would let it wait for ever."""
    monkeypatch.chdir(tmp_path)
    with joinable() as machine:
        with machine.connected() as monitor:
            monitor.execute("query-status")
        with console._connected("web", "console", machine.process.pid):
            with pytest.raises(KvmsupError) as caught:
                console._connected("web", "console", machine.process.pid)
            first = f"the console of web is in use by process {os.getpid()}"
            assert str(caught.value).startswith(first)
            assert str(caught.value).endswith(f"\n  hint: leave it there, or kill {os.getpid()}")
        # The first has left: the next one is let in.
        console._connected("web", "console", machine.process.pid).close()


def test_one_who_only_listens_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_ACCEPT_SECONDS", 0.2)
    with listening(tmp_path / "c"), pytest.raises(KvmsupError) as caught:
        console._connected("web", str(tmp_path / "c"), os.getpid())
    assert str(caught.value) == "QEMU of web does not answer on its console\n  hint: kvmsup status web"


def test_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(KvmsupError) as caught:
        console._connected("web", str(path), os.getpid())
    said = f"web has no console now: {path}: No such file or directory\n  hint: systemctl start kvm@web"
    assert str(caught.value) == said


def test_a_socket_that_leads_to_another_process(tmp_path: Path) -> None:
    """The directory is QEMU's user's: what root types into web's console is for nobody else, such as db's."""
    path = tmp_path / "c"
    with listening(tmp_path / "db") as server, subprocess.Popen(["sleep", "60"]) as qemu:
        path.symlink_to("db")
        with pytest.raises(KvmsupError) as caught:
            console._connected("web", str(path), qemu.pid)
        said = f"{path} leads to process {os.getpid()} instead of QEMU, {qemu.pid}"
        assert str(caught.value) == said
        with accept(server) as other:
            assert other.recv(1) == b""
        qemu.kill()


def test_no_guest_and_no_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemctl, "show", lambda *_: {})
    assert cli.main(["console", "no-such-guest"]) == 1
    assert capsys.readouterr().err.startswith("kvmsup: there is no guest no-such-guest")
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["console", "web"]) == 1
    assert capsys.readouterr().err == (
        "kvmsup: a console needs standard input and output\n  hint: they may be /dev/null, but not closed\n"
    )


def test_whoever_else_is_seen(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    with (
        listening(tmp_path / "c") as server,
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        one.connect(path)
        assert not peers.accepted(one)
        other, _ = server.accept()
        two.connect(path)
        with other:
            assert peers.accepted(one) and not peers.accepted(two)
            found = peers.other_client(path, two)
            assert found and found.pid == os.getpid() and str(os.getpid()) in found.what
            # Let in between the two questions: nobody else is in the way.
            assert peers.other_client(path, one) is None


@pytest.mark.parametrize(
    ("text", "key"), [("^]", "Ctrl-]"), ("^a", "Ctrl-A"), ("^@", "Ctrl-@"), ("^_", "Ctrl-_"), ("none", None)]
)
def test_keys(text: str, key: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["console", "--json", "--detach-key", text, "web"]) == 0
    path = "/run/kvmsup/guests/web/console"
    assert json.loads(capsys.readouterr().out) == {"guest": "web", "console": path, "detach": key}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_cannot_name_a_guest_has_no_console(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["console", "../web", *more]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("kvmsup: there is no guest ../web\n  hint: ")


@pytest.mark.parametrize("text", ["", "^", "]", "^1", "^]x", "ctrl-a", "^é"])
def test_no_keys(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["console", "--detach-key", text, "web"])
    assert caught.value.code == 2
    assert "is not ^ and one of A to Z @ [ \\ ] ^ _, and not none" in capsys.readouterr().err
