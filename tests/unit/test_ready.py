# SPDX-License-Identifier: LGPL-2.1-or-later
"""What guests say of themselves: how it is understood, heard beside hostile ones, and waited for."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmsup.effects import claims, notify, ready, systemctl, vsock
from kvmsup.entry import listen
from kvmsup.entry import ready as waiting
from kvmsup.entry.listen import Listener
from kvmsup.errors import ConfigError, HostError, KvmsupError, Refusal
from kvmsup.model import claim as claim_text
from kvmsup.model import config
from kvmsup.model import vsock as address
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Inside
from kvmsup.model.ready import Said, hear, news, parse, reached, render
from kvmsup.plan import placement as placing
from kvmsup.plan.refusals import Taken
from tests.unit.hosts import HOST, claim, guest, topology

UNITS = Path(__file__).parents[2] / "units"
CLOSED = b""


def speaking(name: str, wanted: str = "yes") -> Claim:
    return claim(name)._replace(cid=address.cid(name), ready=wanted)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Guests web and db, which say when they are ready, and mute, which does not."""
    found = str(tmp_path)
    for place in ("claims", "ready"):
        Path(f"{found}/run/kvmsup/{place}").mkdir(parents=True)
    for one in (speaking("web"), speaking("db", "multi-user.target"), claim("mute")):
        claims.write(found, one)
    return found


# ---- words ----


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b"READY=1"], Said(ready=True)),
        ([b"READY=1\nSTATUS=Ready.\n"], Said(True, "Ready.")),
        ([b"READY=0", b"READY", b"ready=1", b"READY=1 ", b"XREADY=1", b"\xff\xfe=1"], Said()),
        ([b"STATUS=(1 of 2) Job a\x1b[2J\xffb"], Said(status="(1 of 2) Job a?[2J\ufffdb")),
        ([b"STATUS=" + b"x" * 4000], Said(status="x" * 200)),
        ([b"X_SYSTEMD_UNIT_ACTIVE=a.target", b"X_SYSTEMD_UNIT_ACTIVE=b.target"], Said(units=("a.target", "b.target"))),
        ([b"X_SYSTEMD_UNIT_ACTIVE=a.target", b"X_SYSTEMD_UNIT_ACTIVE=a.target"], Said(units=("a.target",))),
        ([b"X_SYSTEMD_UNIT_ACTIVE=a.target", b"X_SYSTEMD_UNIT_INACTIVE=a.target"], Said()),
        ([b"X_SYSTEMD_UNIT_ACTIVE=../../etc", b"X_SYSTEMD_UNIT_ACTIVE="], Said()),
        (
            [b"READY=1\nX_SYSTEMD_UNIT_ACTIVE=a.target", b"X_SYSTEMD_SHUTDOWN=reboot"],
            Said(status="shutting down: reboot"),
        ),
        ([b"X_SYSTEMD_SHUTDOWN=reboot", b"READY=1\nSTATUS=Ready."], Said(True, "Ready.")),
    ],
)
def test_words(messages: list[bytes], said: Said) -> None:
    found = Said()
    for message in messages:
        found = hear(found, message)
    assert found == said
    assert parse(render(found), "x") == said


def test_what_is_kept_of_a_guest_is_bounded() -> None:
    found = hear(Said(), b"\n".join(b"X_SYSTEMD_UNIT_ACTIVE=%d.target" % number for number in range(500)))
    assert found.units == tuple(f"{number}.target" for number in range(436, 500))


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"ready": 1}', "[" * 99999, '{"ready": true, "status": ""}'])
def test_a_file_that_is_not_what_a_guest_said(text: str) -> None:
    with pytest.raises(HostError, match=r"^f is not what a guest said: "):
        parse(text, "f")


def test_seconds_that_pass_are_no_news() -> None:
    jobs = [f"(1 of 2) A start job is running for fsck ({number}s / no limit)" for number in (1, 2)]
    assert news(Said(status=jobs[0])) == news(Said(status=jobs[1]))
    assert news(Said(status=jobs[0])) != news(Said(status=jobs[0].replace("fsck", "swap")))
    assert news(Said(status="fsck 12%")) != news(Said(status="fsck 13%"))


def test_what_is_waited_for() -> None:
    said = Said(True, "", ("multi-user.target",))
    assert reached(said, "yes") and reached(said, "multi-user.target")
    assert not reached(said, "graphical.target")
    assert not reached(said._replace(ready=False), "yes")


# ---- the file ----


def found(text: str) -> Inside | str:
    head = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n[guest]\n'
    try:
        return config.read_guest("web", "web.toml", (head + text).encode()).guest.inside
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("", Inside("", agent=False)),
        ("ready = false\nagent = true", Inside("", agent=True)),
        ("ready = true", Inside("yes", agent=False)),
        ('ready = "unit:multi-user.target"', Inside("multi-user.target", agent=False)),
    ],
)
def test_what_a_file_asks_for(text: str, inside: Inside) -> None:
    assert found(text) == inside


@pytest.mark.parametrize(
    ("value", "what", "hint"),
    [
        ("3", "3 is a whole number; expected true or false", "ready = false"),
        ('"yes"', '"yes" is nothing to wait for', 'true, or "unit:NAME.target"'),
        ('"multi-user.target"', '"multi-user.target" is nothing to wait for', '"unit:multi-user.target"'),
        (
            '"unit:sshd.service"',
            '"unit:sshd.service" is nothing to wait for',
            'a guest tells of its targets only, such as "unit:multi-user.target"',
        ),
        ('"unit:A.target"', '"unit:A.target" is nothing to wait for', "a guest tells of its targets only, such as"),
        ('"a\\u001b"', "is nothing to wait for", 'true, or "unit:NAME.target"'),
    ],
)
def test_what_no_guest_says(value: str, what: str, hint: str) -> None:
    told = str(found(f"ready = {value}"))
    assert told.startswith(f"web.toml:6:9: guest.ready: {what}\n")
    assert f"\n  hint: {hint}" in told
    assert all(char.isprintable() or char == "\n" for char in told)


# ---- addresses ----


def test_addresses_are_those_of_the_names() -> None:
    assert address.cid("web") == address.cid("web") != address.cid("db")
    found = [address.cid(f"web-{number}") for number in range(5000)]
    assert len(set(found)) > 4990
    assert min(found) >= 3
    assert max(found) < 1 << 32
    # The published test values of 32-bit FNV-1a: of "", "a" and "foobar".
    for name, value in (("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)):
        assert address.cid(name) == 3 + value % (1 << 31)


def test_the_socket_is_where_guests_are_told_to_speak() -> None:
    assert f"\nListenStream=vsock::{address.PORT}\n" in (UNITS / "kvmsup-listen.socket").read_text()
    assert address.CREDENTIAL.endswith(f":2:{address.PORT}")
    assert address.PORT < 1024
    assert f"\nTimeoutStartSec={waiting._USUAL_TIMEOUT_SECONDS:.0f}\n" in (UNITS / "kvm-ready@.service").read_text()


def test_the_same_address_twice_is_refused_with_the_other_guests_name() -> None:
    asked = guest(name="web")._replace(inside=Inside("yes", agent=False))
    other = speaking("db")._replace(cid=address.cid("web"), dedicated=False)
    with pytest.raises(Taken) as caught:
        placing.place(asked, HOST, topology(), [other], {0: 4 << 30})
    assert caught.value.holders == ("db",)
    assert str(caught.value) == (
        f"guest.ready: vsock address (CID) {address.cid('web')} is that of guest db too: both names stand for it\n"
        "  hint: rename one of them, leave guest.ready out, or stop that guest"
    )
    placed = placing.place(asked, HOST, topology(), [speaking("web")], {0: 4 << 30})  # its own, of a start before
    made = placing.claim(asked, placed, "")
    assert (made.cid, made.ready, made.agent) == (address.cid("web"), "yes", False)
    assert claim_text.parse(claim_text.render(made), "x") == made
    placing.place(guest(name="web"), HOST, topology(), [other], {0: 4 << 30})


def test_vhost_vsock_is_loaded_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    loaded = tmp_path / "sys/class/misc/vhost-vsock"
    monkeypatch.setattr(systemctl, "start", started.append)
    with pytest.raises(HostError) as caught:
        vsock.ensure(str(tmp_path))
    assert started == ["modprobe@vhost_vsock.service"]
    assert str(caught.value) == (
        "this host has no vhost-vsock, over which a guest says that it is ready\n"
        "  hint: modprobe vhost_vsock; or leave guest.ready out"
    )
    loaded.mkdir(parents=True)
    vsock.ensure(str(tmp_path))
    assert len(started) == 1
    assert vsock.taken(str(tmp_path), 3) == ""  # no device to ask


@pytest.mark.skipif(not os.access("/dev/vhost-vsock", os.W_OK), reason="no /dev/vhost-vsock here to take addresses of")
def test_an_address_that_somebody_has() -> None:
    import fcntl
    import struct

    cid = address.cid("a-guest-of-this-test")
    assert vsock.taken("", cid) == ""
    with open("/dev/vhost-vsock", "wb") as device:
        fcntl.ioctl(device, vsock._SET_GUEST_CID, struct.pack("Q", cid))
        assert vsock.taken("", cid).startswith(
            f"vsock address (CID) {cid}, which belongs to this guest's name, is some"
        )


# ---- the listener ----


class OverUnix(Listener):
    """The listener on an AF_UNIX socket, where the kernel has no vsock loopback: the peer's name says CID and port."""

    def _peer(self, address: object) -> tuple[int, int]:
        cid, port, _ = bytes(address).removeprefix(b"\0").split(b"-") if isinstance(address, bytes) else (0, 0, 0)
        return int(cid), int(port)


class Heard:
    """A listener at work in a thread, and guests who connect to it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.count = 0
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(f"{root}/listen")
        self.listening.listen(4096)
        self.listener = OverUnix(root, self.listening)
        self.thread = threading.Thread(target=self.listener.run, args=(0.5,))
        self.thread.start()

    def connect(self, name: str, port: int = 1023) -> socket.socket:
        self.count += 1
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(10)
        connection.bind(f"\0{address.cid(name)}-{port}-{id(self)}.{self.count}")
        connection.connect(f"{self.root}/listen")
        return connection

    def say(self, name: str, message: bytes, port: int = 1023) -> None:
        """As sd_notify(3) does since systemd 256: say it, and wait until the other side has closed."""
        with self.connect(name, port) as connection:
            # What is too long, or from somebody who may not speak, is cut off in the middle.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(message)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == CLOSED

    def said(self, name: str) -> Said:
        return ready.read(self.root, name)


@pytest.fixture
def heard(root: str) -> Iterator[Heard]:
    found = Heard(root)
    try:
        yield found
    finally:
        found.thread.join()
        found.listening.close()


def test_a_guest_is_heard_as_soon_as_it_has_spoken(heard: Heard) -> None:
    heard.say("web", b"STATUS=Starting\n")
    assert heard.said("web") == Said(status="Starting")
    heard.say("web", b"READY=1\nSTATUS=Ready.")
    assert heard.said("web") == Said(True, "Ready.")
    assert heard.said("db") == Said()


def test_who_is_not_heard(heard: Heard) -> None:
    heard.say("web", b"READY=1", port=1024)  # nobody who is root in the guest
    heard.say("web", b"STATUS=x\nREADY=1\n" + b"x" * 5000)  # longer than anything that is meant
    heard.say("mute", b"READY=1")  # its file does not ask for it
    heard.say("stranger", b"READY=1")  # somebody else's machine
    assert os.listdir(f"{heard.root}/run/kvmsup/ready") == []
    claims.remove(heard.root, "web")
    heard.say("web", b"READY=1")  # it has ended meanwhile
    assert os.listdir(f"{heard.root}/run/kvmsup/ready") == []


def test_a_file_that_is_broken_is_written_anew(heard: Heard) -> None:
    Path(ready.path(heard.root, "web")).write_text("nonsense")
    heard.say("web", b"READY=1")
    assert heard.said("web").ready


def test_one_who_holds_connections_open_keeps_only_itself_out(heard: Heard) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(heard.connect("web")) for _ in range(1000)]
        heard.say("db", b"READY=1")
        assert heard.said("db").ready
        assert len(heard.listener.talks) == listen._MOST_OPEN
        for one in held[listen._MOST_OPEN :]:
            assert one.recv(1) == CLOSED
    while heard.listener.talks:  # it has still to hear that they are gone
        time.sleep(0.01)
    heard.say("web", b"READY=1")
    assert heard.said("web").ready


def test_one_who_is_slow_is_cut_off(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_MESSAGE_SECONDS", 0.2)
    with heard.connect("web") as slow:
        slow.sendall(b"READY=1")
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == CLOSED
        assert 0.1 < time.monotonic() - start < 5
    assert not heard.said("web").ready


def test_one_who_floods_is_slowed_down_and_nobody_else(heard: Heard) -> None:
    ended = threading.Event()
    told = 0

    def flood() -> None:
        nonlocal told
        while not ended.is_set():
            heard.say("web", b"STATUS=%d" % told)
            told += 1

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        start = time.monotonic()
        while time.monotonic() < start + 1.5:
            before = time.monotonic()
            heard.say("db", b"STATUS=three times a second")
            assert time.monotonic() - before < 5
            time.sleep(0.3)
        assert told <= listen._BURST + 2.5 * listen._A_SECOND
    finally:
        ended.set()
        thread.join()
    assert heard.said("web").status == str(told - 1)  # slowed down, and nothing of it lost


def test_what_systemd_does_not_hand_over(capfd: pytest.CaptureFixture[str]) -> None:
    assert listen.main() == 1
    said = "<3>listen is run by kvmsup-listen.service, with the socket of kvmsup-listen.socket\n"
    assert capfd.readouterr().err == said


def test_the_program_takes_systemds_socket_and_ends_when_nobody_speaks(root: str) -> None:
    """In a process of its own, as systemd starts it (sd_listen_fds(3))."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{root}/listen")
        listening.listen()
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            "from kvmsup.entry import listen; listen._IDLE_SECONDS = 0.2; sys.exit(listen.main(sys.argv[2]))"
        )
        command = [sys.executable, "-S", "-c", code, str(listening.fileno()), root]
        done = subprocess.run(
            command, pass_fds=[listening.fileno()], capture_output=True, text=True, cwd=UNITS.parent, timeout=30
        )
    assert (done.returncode, done.stderr) == (0, "")


@contextlib.contextmanager
def over_loopback(listening: socket.socket) -> Iterator[socket.socket]:
    """A connection as a guest makes it, from a port of root's; the guest is this host itself, whose CID is 1."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        connection.bind((socket.VMADDR_CID_ANY, 1023))
        connection.connect((1, listening.getsockname()[1]))
        yield connection


def test_over_real_vsock(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "cid", lambda name: 1 if name == "web" else 5)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listening:
        listening.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listening.listen()
        try:
            with over_loopback(listening):
                listening.accept()[0].close()
        except OSError as error:
            pytest.skip(f"no vsock loopback here (CONFIG_VSOCKETS_LOOPBACK): {error}")
        thread = threading.Thread(target=Listener(root, listening).run, args=(0.5,))
        thread.start()
        with over_loopback(listening) as connection:
            connection.sendall(b"READY=1")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == CLOSED
        thread.join()
    assert ready.read(root, "web").ready


# ---- kvm-ready@ ----


class Manager:
    """Hears what a unit tells systemd."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(65536).decode())
        return found


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    found = Manager(f"{tmp_path}/notify")
    with found.socket:
        yield found


@contextlib.contextmanager
def later(*steps: tuple[float, Callable[[], object]]) -> Iterator[None]:
    """Each of `steps` is done so many seconds from now, and none any more when this ends."""
    start, ended = time.monotonic(), threading.Event()

    def work() -> None:
        for seconds, what in steps:
            if not ended.wait(max(0.0, start + seconds - time.monotonic())):
                what()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def saying(root: str, name: str, said: Said) -> Callable[[], object]:
    return lambda: ready.write(root, name, said)


def test_a_guest_that_was_ready_long_before(root: str, manager: Manager) -> None:
    ready.write(root, "web", Said(True, "Ready."))
    start = time.monotonic()
    waiting.run("web", root, 60)
    assert time.monotonic() - start < 5
    assert manager.heard() == ["STATUS=Ready."]


@pytest.mark.parametrize(("name", "last"), [("web", Said(True)), ("db", Said(units=("multi-user.target",)))])
def test_its_status_is_relayed_until_it_is_ready(root: str, manager: Manager, name: str, last: Said) -> None:
    with later((0.3, saying(root, name, Said(status="Starting"))), (0.6, saying(root, name, last))):
        waiting.run(name, root, 60)
    extended = "EXTEND_TIMEOUT_USEC=60000000"
    assert manager.heard() == [
        f"STATUS=waiting for {name}", extended, "STATUS=Starting", extended, f"STATUS={name} is ready",
    ]  # fmt: skip


def test_progress_puts_the_end_off_and_seconds_that_pass_do_not(root: str) -> None:
    """With a second of patience: three new things half a second apart, then one that only counts."""
    progress = [(0.5 * (number + 1), saying(root, "web", Said(status=f"job {number}"))) for number in range(3)]
    counting = [(1.6 + 0.1 * passed, saying(root, "web", Said(status=f"job 2 ({passed}s)"))) for passed in range(100)]
    start = time.monotonic()
    with later(*progress, *counting), pytest.raises(Refusal) as caught:
        waiting.run("web", root, 2)
    assert 2.4 < time.monotonic() - start < 8
    assert re.fullmatch(
        r"web has not said that it is ready, and nothing new for 1 s; the last was: job 2 \(\d+s\)\n"
        r"  hint: journalctl -u kvm@web has its console",
        str(caught.value),
    )


def test_a_guest_that_never_says_a_word(root: str) -> None:
    with pytest.raises(Refusal) as caught:
        waiting.run("db", root, 0.4)
    assert str(caught.value) == (
        "db has not said a word within 0 s\n  hint: its systemd must be 254 or newer, or something else in it must say"
        " so: kvmsup.guest(5), guest.ready"
    )
    ready.write(root, "db", Said(ready=True, status="Ready."))  # emergency.target: READY=1 without the target
    with pytest.raises(
        Refusal, match=r"^db has not said that it has reached multi-user.target, and nothing new for 0 s"
    ):
        waiting.run("db", root, 0.4)


def test_a_guest_that_ends_meanwhile(root: str) -> None:
    gone = pytest.raises(HostError, match=r"^web ended before it said that it is ready$")
    with later((0.2, lambda: claims.remove(root, "web"))), gone:
        waiting.run("web", root, 60)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "mute",
            "<3>mute is not told to say when it is ready: its file has no guest.ready\n"
            "<3>  hint: add ready = true below [guest] and restart it: systemctl restart kvm@mute\n",
        ),
        ("gone", "<3>gone does not run\n<3>  hint: systemctl start kvm@gone\n"),
    ],
)
def test_at_once_with_a_sentence(root: str, name: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert waiting.main(name, root) == 1
    assert capfd.readouterr().err == said


def test_the_time_out_is_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemctl, "show", lambda *_: {"kvm-ready@web.service": {"TimeoutStartUSec": "1min 30s"}})
    assert waiting._timeout("web") == 90

    def busy(*_: object) -> None:
        raise HostError("systemctl show: Connection timed out")

    monkeypatch.setattr(systemctl, "show", busy)
    assert waiting._timeout("web") == 180


def test_no_manager_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("", "vsock:2:1", f"{tmp_path}/nobody"):
        monkeypatch.setenv("NOTIFY_SOCKET", where)
        notify.tell(STATUS="x")
    name = f"kvmsup-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract, selectors.DefaultSelector() as selector:
        abstract.bind(f"\0{name}")
        selector.register(abstract, selectors.EVENT_READ)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify.tell(STATUS="x", EXTEND_TIMEOUT_USEC=5)
        assert selector.select(1)
        assert abstract.recv(99) == b"STATUS=x\nEXTEND_TIMEOUT_USEC=5"


def test_forgetting(root: str) -> None:
    """What a listener that was killed had begun to write goes, too, and none of another guest's."""
    ready.write(root, "web", Said(True))
    for name in ("web.123.part", "web2.123.part", "web-2.4.part"):
        Path(f"{root}/run/kvmsup/ready/{name}").touch()
    ready.forget(root, "web")
    assert sorted(os.listdir(f"{root}/run/kvmsup/ready")) == ["web-2.4.part", "web2.123.part"]
    ready.forget(root, "web")
    assert ready.read(root, "web") == Said()
    os.mkdir(ready.path(root, "web"))
    for what in (ready.forget, ready.read):
        with pytest.raises(KvmsupError):
            what(root, "web")
