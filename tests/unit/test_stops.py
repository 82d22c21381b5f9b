# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stops of guests that do not simply run, stops while another program is at QEMU, and what is said of an end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmsup.effects import journal, proc
from kvmsup.entry import apply, attach, ended, stop, stopping
from kvmsup.errors import HostError
from kvmsup.model import claim as claim_text
from kvmsup.plan import ending
from kvmsup.plan.paths import ENDED
from tests.unit import fake_qemu, real_qemu
from tests.unit.hosts import claim

CPUS = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("paused", "<5>the guest was paused: it goes on, to shut down\n"),
        ("io-error", "<5>the guest was paused by an error of a disk: it tries again, to shut down\n"),
        ("asleep", "<5>the guest was asleep: it is woken, to shut down\n"),
        ("internal-error", "<4>KVM could not run the guest any further (internal-error): cutting its power\n"),
        ("panicked", "<4>the guest's kernel has panicked: cutting its power\n"),
        ("prelaunch", ""),
        ("state-of-nothing", ""),
        ("state-unknown", ""),
    ],
)
def test_a_guest_that_hears_nothing(behaviour: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It is made to hear, or cut off at once where it never will; nobody waits for the patience to be over."""
    with fake_qemu.running(behaviour) as fake:
        start = time.monotonic()
        stop.run("web", fake.pid, fake.root, 60.0)
        assert fake.process.wait(10) == 0
        assert time.monotonic() - start < 20
    assert capfd.readouterr().err == said


def listens(fake: fake_qemu.Running) -> None:
    while not os.path.exists(fake.path):
        time.sleep(0.01)


def test_a_stopped_qemu_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with fake_qemu.running("good") as fake:
        listens(fake)
        fake.process.send_signal(signal.SIGSTOP)
        while not proc.is_stopped(f"/proc/{fake.pid}"):
            time.sleep(0.01)
        stop.run("web", fake.pid, fake.root, 60.0)
        assert fake.process.wait(10) == 0
    assert capfd.readouterr().err == "<5>QEMU was stopped by a signal: it goes on, so that the guest can shut down\n"


def test_one_that_does_not_listen_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stop, "_spans", lambda _: (0.5, 20.0))
    with fake_qemu.running("silence") as fake:
        listens(fake)
        monkeypatch.setenv("MAINPID", str(fake.pid))
        assert stop.main("web", fake.root) == 1
        assert fake.process.wait(10) == -signal.SIGTERM
    said = "<4>the guest could not be asked to power down: QEMU has not answered in time: its power is cut\n"
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("deaf", "the guest could not be asked to power down: QEMU has not answered in time: its power is cut\n"),
        ("ignore-everything", "the guest has not shut down within 1 s: cutting its power\n"),
    ],
)
def test_one_that_does_not_end_is_killed(
    behaviour: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """systemd's own SIGKILL is no help: a QEMU that was taken over may put that off."""
    monkeypatch.setattr(stop, "_spans", lambda _: (1.0, 1.0))
    with fake_qemu.running(behaviour) as fake:
        listens(fake)
        monkeypatch.setenv("MAINPID", str(fake.pid))
        assert stop.main("web", fake.root) == 1
        assert fake.process.wait(10) == -signal.SIGKILL
    assert capfd.readouterr().err == f"<4>{said}<4>QEMU did not end when it was told to: it was killed\n"


def test_one_that_ends_right_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process, proc.descriptor(process.pid) as descriptor:
        assert descriptor is not None

        def ends_late(*_: object) -> tuple[list[int], ...]:
            process.communicate()  # ended, and collected
            return [], [], []

        monkeypatch.setattr(select, "select", ends_late)
        assert not proc.kill_after(descriptor, 1.0)


ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from kvmsup.entry import attach; sys.exit(attach.main('web', sys.argv[1]))"


def attaching(fake: fake_qemu.Running, tmp_path: Path, fault: str) -> subprocess.Popen[bytes]:
    """attach in a process of its own, as systemd runs it, which stops itself at a step."""
    held = claim("web", [str(CPUS[0])] * 2, emulator=str(CPUS[-1]))
    lines = (line.split("=", 1) for line in claim_text.render(held).splitlines())
    environment = dict(lines) | {"MAINPID": str(fake.pid), "KVMSUP_FAULT": f"{fault}:stop"}
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, fake.root],
            env=os.environ | environment,
            stderr=said,
            cwd=ROOT,
        )
    while not proc.is_stopped(f"/proc/{process.pid}"):
        assert process.poll() is None
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("step", "status"), [("attach.verify", -signal.SIGTERM), ("attach.look-again", 0)])
def test_a_stop_while_attach_runs(step: str, status: int, tmp_path: Path) -> None:
    """systemd sends the signal and SIGCONT: a paused QEMU ends at once, a guest that runs hears its power button."""
    with fake_qemu.running("good") as fake:
        process = attaching(fake, tmp_path, step)
        process.send_signal(stopping.KILL_SIGNAL)
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == 0
        assert fake.process.wait(10) == status
    assert (tmp_path / "said").read_text() == ""


def stopped_now(*_: object) -> None:
    os.kill(os.getpid(), stopping.KILL_SIGNAL)


@pytest.mark.parametrize("step", ["attach.verify", "attach.look-again"])
def test_a_stop_while_attach_ends_a_guest(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be ended all the same: what is under way is not cut off by it."""
    asked = []

    def ends(_name: str, pid: int, _root: str) -> int:
        stopped_now()
        asked.append(pid)
        return 0

    monkeypatch.setattr(stop, "end", ends)
    monkeypatch.setenv("KVMSUP_FAULT", f"{step}:error")
    for line in claim_text.render(claim("web", [str(CPUS[0])] * 2, emulator=str(CPUS[-1]))).splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    with fake_qemu.running("good") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        monkeypatch.setattr(journal, "say", stopped_now)
        assert attach.main("web", fake.root) == 1
        assert asked == ([fake.pid] if step == "attach.look-again" else [])
        if not asked:
            assert fake.process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("error", [None, HostError("the reload was refused")])
def test_a_stop_at_the_very_end_of_a_reload(error: HostError | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it says what went wrong. systemd runs no ExecStop= of such a unit: the reload sees to the guest."""
    asked = []

    def applied(*_: object) -> None:
        if error:
            raise error

    def about_to_be_deaf() -> None:
        if not error:
            stopped_now()
        deafen()

    deafen = stopping.deafen
    monkeypatch.setattr(stopping, "deafen", about_to_be_deaf)

    def ends(_name: str, pid: int, _root: str) -> int:
        asked.append(pid)
        return 7

    monkeypatch.setattr(stop, "end", ends)
    monkeypatch.setattr(apply, "run", applied)
    monkeypatch.setattr(journal, "say", stopped_now)
    monkeypatch.setenv("MAINPID", "4711")
    assert apply.main("web") == 7
    assert asked == [4711]


def test_a_stop_that_an_error_takes_the_place_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a reload whose last step is done whatever happens, and fails in its turn."""
    asked = []

    def ends(_name: str, pid: int, _root: str) -> int:
        asked.append(pid)
        return 7

    def applied(*_: object) -> None:
        try:
            stopped_now()
        finally:
            raise HostError("QEMU has not answered in time")

    monkeypatch.setattr(stop, "end", ends)
    monkeypatch.setattr(apply, "run", applied)
    monkeypatch.setenv("MAINPID", "4711")
    assert apply.main("web") == 7
    assert asked == [4711]


@pytest.mark.parametrize(("key", "status"), [("ExecStartPost", -signal.SIGTERM), ("ExecReload", 0)])
def test_a_stop_before_a_program_listens(key: str, status: int, tmp_path: Path) -> None:
    """As the unit runs it: the signal comes while Python is still starting."""
    units = ROOT / "units"
    shim = tmp_path / "kvmsup-guest"
    shim.write_text((units / shim.name).read_text().replace("@LIBDIR@", str(ROOT)))
    shim.chmod(0o755)
    lines = (units / "kvm@.service").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}=+")).partition("+")[2]
    line = line.replace("nsenter --mount=/proc/1/ns/mnt ", "")  # here nothing is hidden, and PID 1 may be anybody's
    held = claim_text.render(claim("web", [str(CPUS[0])] * 2, emulator=str(CPUS[-1])))
    with fake_qemu.running("good") as fake:
        environment = dict(line.split("=", 1) for line in held.splitlines()) | {"MAINPID": str(fake.pid)}
        words = line.replace("@LIBDIR@", str(tmp_path)).replace("%i", "web").split()
        process = subprocess.Popen(
            [*words, fake.root], env=os.environ | environment, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 10
        while not blocked(process.pid) and time.monotonic() < deadline:
            assert process.poll() is None
        process.send_signal(stopping.KILL_SIGNAL)
        said = process.communicate(timeout=30)[1]
        assert (process.returncode, said) == (0, "")
        assert fake.process.wait(10) == status


def blocked(pid: int) -> bool:
    """Whether the process has the signal blocked (proc(5), SigBlk)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))
    return bool(mask >> stopping.KILL_SIGNAL - 1 & 1)


def test_the_unit_sends_that_signal() -> None:
    unit = (ROOT / "units/kvm@.service").read_text()
    name = stopping.KILL_SIGNAL.name
    assert f"\nKillSignal={name}\n" in unit
    assert f"\nSuccessExitStatus={name}\n" in unit
    assert f" --block-signal={name.removeprefix('SIG')} " in unit


def test_real_qemu_pays_no_attention_to_it() -> None:
    with real_qemu.running() as machine, machine.connected() as monitor:
        monitor.execute("cont")
        for _ in range(20):
            machine.process.send_signal(stopping.KILL_SIGNAL)
            assert monitor.execute("query-status")["status"] == "running"
        assert machine.process.poll() is None


@pytest.mark.parametrize(
    ("traced", "cause"),
    [
        ("", None),
        ("qemu_system_shutdown_request reason=8\n", 8),
        ("4711@1.5:qemu_system_shutdown_request reason=6\n", 6),
        ("qemu_system_shutdown_request reason=6\nqemu_system_shutdown_request reason=4\n", 4),
        ("qemu_system_shutdown_request reason=80000000000000000000000\n", None),
        ("reason=8", None),
    ],
)
def test_cause(traced: str, cause: int | None) -> None:
    assert ending.cause(traced) == cause


PANICKED = (
    "the guest's kernel has panicked\n"
    "  hint: what it said last is above, where the journal has the console that it said it on (console.serial)"
)
NO_MEMORY = (
    "the kernel ran out of memory and killed QEMU: a power cut for the guest\n"
    "  hint: the host has too little memory (kvmsup list), or a MemoryMax= of the unit or of a slice is too small"
)


@pytest.mark.parametrize(
    ("result", "traced", "said"),
    [
        ("exit-code", "qemu_system_shutdown_request reason=8\n", (3, PANICKED)),
        ("success", "qemu_system_shutdown_request reason=6\n", (5, "the guest has shut down")),
        ("oom-kill", "", (3, NO_MEMORY)),
        ("success", "qemu_system_shutdown_request reason=4\n", None),
        ("signal", "", None),
        ("exit-code", "\0\xff", None),
    ],
)
def test_what_is_said_of_an_end(
    result: str,
    traced: str,
    said: tuple[int, str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "run/kvmsup/guests/web"
    directory.mkdir(parents=True)
    (directory / ENDED).write_text(traced)
    monkeypatch.setenv("SERVICE_RESULT", result)
    assert ended.main("web", str(tmp_path)) == 0
    lines = "".join(f"<{said[0]}>{line}\n" for line in said[1].splitlines()) if said else ""
    assert capfd.readouterr().err == lines


@pytest.mark.parametrize("kind", ["nothing", "link", "fifo", "directory"])
def test_what_qemus_user_puts_in_its_place_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run/kvmsup/guests/web"
    directory.mkdir(parents=True)
    (tmp_path / "secret").write_text("qemu_system_shutdown_request reason=8\n")
    place = directory / ENDED
    if kind == "link":
        place.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    assert ended.main("web", str(tmp_path)) == 0
    assert capfd.readouterr().err == ""


def test_what_the_guests_unit_says_has_no_priority_in_its_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """systemd reads none there, where the guest's lines are, and would show it."""
    monkeypatch.setenv("KVMSUP_UNIT", "kvm@web.service")
    journal.say(journal.ERROR, "one\n  hint: two")
    journal.say(journal.ERROR, "")
    assert capfd.readouterr().err == "one\n  hint: two\n"
    unit = (ROOT / "units/kvm@.service").read_text()
    assert "\nSyslogLevelPrefix=no\nEnvironment=KVMSUP_UNIT=kvm@%i.service\n" in unit
