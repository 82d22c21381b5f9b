# SPDX-License-Identifier: LGPL-2.1-or-later
"""attach and stop against a QEMU that misbehaves, with real threads that are really pinned."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvmsup import cpulist
from kvmsup.effects import numa_maps, pin, proc, qmp, running, threads
from kvmsup.entry import attach, stop
from kvmsup.errors import HostError, KvmsupError, QmpError
from kvmsup.model import claim as claim_text
from kvmsup.model import config
from kvmsup.model.claim import Claim
from kvmsup.plan import agreed, changes, plugs
from kvmsup.plan.plugs import File, Plug
from kvmsup.steps import STEPS
from tests.unit import fake_qemu, trees
from tests.unit.hosts import claim

SOUND = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n'
CPUS = sorted(os.sched_getaffinity(0))
# vCPU 0 and 1 on the first two CPUs of this machine, everything else on the last one.
TWO = [str(CPUS[0]), str(CPUS[1 % len(CPUS)])]
LAST = str(CPUS[-1])


def wanted(vcpu: list[str] = TWO, **changed: str) -> Claim:
    return claim("web", vcpu, **({"emulator": LAST} | changed))  # type: ignore[arg-type]


def masks(pid: int) -> dict[int, str]:
    return {int(tid): cpulist.render(os.sched_getaffinity(int(tid))) for tid in os.listdir(f"/proc/{pid}/task")}


def attached(fake: fake_qemu.Running, held: Claim) -> None:
    attach.run("web", fake.pid, held, fake.root)


@pytest.mark.parametrize("behaviour", ["good", "slow", "late-thread"])
def test_every_thread_is_where_it_should_be(behaviour: str) -> None:
    with fake_qemu.running(behaviour) as fake:
        attached(fake, wanted())
        found = masks(fake.pid)
        tids = sorted(found)
        assert tids[0] == fake.pid
        assert [found[tid] for tid in tids[:3]] == [LAST, *TWO]
        assert [found[tid] for tid in tids[3:]] == [LAST] * (behaviour == "late-thread")


def test_a_shared_guest_may_have_less_than_its_claim_but_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = cpulist.render(CPUS)
    held = claim("web", [everywhere] * 2, dedicated=False, emulator=everywhere)
    monkeypatch.setattr(pin, "allowed", lambda _: frozenset((CPUS[0],)))
    with fake_qemu.running("good") as fake:
        attached(fake, held)
    monkeypatch.setattr(pin, "allowed", lambda _: frozenset((*CPUS, 999)))
    with fake_qemu.running("good") as fake, pytest.raises(HostError) as caught:
        attached(fake, held)
    assert str(caught.value).endswith(f" may run on CPU {everywhere},999 after it was pinned to {everywhere}")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("hang-up", "QEMU closed its monitor"),
        ("die", "QEMU closed its monitor"),
        ("die-at-threads", "QEMU closed its monitor"),
        ("die-at-cont", "QEMU closed its monitor"),
        ("bad-greeting", "the monitor did not greet as QMP does"),
        ("not-json", "QEMU sent something that is not JSON"),
        ("endless-line", "QEMU sent a message of over 8 MiB"),
        ("events-flood", "QEMU sent over 10000 events instead of an answer"),
        ("refuse-cpus", "QEMU refused query-cpus-fast: query-cpus-fast is not for you"),
        ("refuse-with-orders", "QEMU refused query-cpus-fast: no??[2J?"),
        ("refuse-cont", "QEMU refused cont: cont is not for you"),
        ("vcpu-missing", "QEMU has vCPUs 1, 2 were asked for"),
        ("vcpu-too-many", "QEMU has vCPUs 0-2, 2 were asked for"),
        ("no-vcpus", "QEMU has vCPUs none, 2 were asked for"),
        ("vcpu-negative", "QEMU has vCPUs -1,1, 2 were asked for"),
        ("same-thread", "QEMU named one thread for two"),
        ("foreign-thread", "QEMU named threads that it does not have: 1"),
        ("vcpus-not-a-list", "QEMU's list of vCPUs is not as its schema says"),
        ("vcpus-of-strings", "QEMU's list of vCPUs is not as its schema says"),
        ("vcpus-without-tid", "QEMU's list of vCPUs is not as its schema says"),
        ("vcpus-infinite", "QEMU's list of vCPUs is not as its schema says"),
    ],
)
def test_misbehaviour(behaviour: str, said: str) -> None:
    with fake_qemu.running(behaviour) as fake, pytest.raises(QmpError) as caught:
        attached(fake, wanted())
    assert str(caught.value) == said


@pytest.mark.parametrize("behaviour", ["silence", "silence-after-greeting", "silence-after-cont"])
def test_silence_lasts_as_long_as_qemu(behaviour: str) -> None:
    """Filling memory takes as long as it takes, so only QEMU's end, or systemd's patience, ends the wait."""
    pid = os.getpid()
    with fake_qemu.running(behaviour) as fake:
        killer = os.fork()
        if not killer:
            time.sleep(0.6)
            os.kill(fake.pid, 9)
            os._exit(0)
        try:
            with pytest.raises(QmpError, match=r"^QEMU (closed its monitor|ended)"):
                attached(fake, wanted())
        finally:
            assert os.getpid() == pid
            os.waitpid(killer, 0)


def test_a_cpu_that_is_not_there() -> None:
    held = wanted(["8190", "8191"])
    with fake_qemu.running("good") as fake, pytest.raises(HostError) as caught:
        attached(fake, held)
    said = str(caught.value).replace(str(fake.pid + 1), "TID")
    assert said.endswith(
        " cannot be pinned to CPU 8190: none of them is online and in the cpuset of its control group (AllowedCPUs=)"
    )


def test_a_pin_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin, "pin", lambda *_: None)
    os.sched_setaffinity(0, {CPUS[0]})
    try:
        with fake_qemu.running("good") as fake, pytest.raises(HostError) as caught:
            attached(fake, wanted(["8190", "8191"], emulator="8189"))
    finally:
        os.sched_setaffinity(0, CPUS)
    where = f" may run on CPU {CPUS[0]} after it was pinned to 8190"
    assert str(caught.value).startswith("thread ") and str(caught.value).endswith(where)


def test_hugepages_that_are_elsewhere_are_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    held = wanted()._replace(page_size=2 << 20, pages={0: 3, 1: 2})
    with fake_qemu.running("good") as fake:
        attached(fake, held)  # and the fake has none
    claimed = "claimed are node 0: 3 and node 1: 2; kvmsup status web tells what is where"
    told = f"<4>its hugepages of 2M are on {{}}, {claimed}\n"
    assert capfd.readouterr().err == told.format("no node")
    maps = [
        "7f0 bind:0 file=/memfd:mem0 huge dirty=3 N0=3 kernelpagesize_kB=2048",
        "7f1 bind:1 file=/memfd:mem1 huge dirty=2 N1=2 kernelpagesize_kB=2048",
        "7f2 default heap anon=9 N1=9 kernelpagesize_kB=4",
    ]
    for lines, said in ((maps, ""), ([maps[0].replace("N0=3", "N0=2 N1=1"), *maps[1:]], "node 0: 2 and node 1: 3")):
        with fake_qemu.running("good") as fake:
            found = list(numa_maps._parse(lines))
            monkeypatch.setattr(numa_maps, "mappings", lambda *_, found=found: found)
            attached(fake, held)
        assert capfd.readouterr().err == (told.format(said) if said else "")


def test_systemd_hears_qemu_no_more_once_the_guest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order: what a QEMU says of itself comes after that."""
    path = str(tmp_path / "notify")
    order = []
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    execute = qmp.Monitor.execute

    def watched(self: qmp.Monitor, command: str, **arguments: Any) -> Any:
        if command == "cont":
            order.append(systemd.recv(4096, socket.MSG_DONTWAIT))
        return execute(self, command, **arguments)

    monkeypatch.setattr(qmp.Monitor, "execute", watched)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, fake_qemu.running("good") as fake:
        systemd.bind(path)
        attach.run("web", fake.pid, wanted(), fake.root)
    assert order == [b"NOTIFYACCESS=none"]


def test_a_thread_that_has_ended_needs_no_pin() -> None:
    with fake_qemu.running("good") as fake:
        fake.process.kill()
        fake.process.wait()
        pin.pin(fake.pid, frozenset(CPUS))
        assert pin.allowed(fake.pid) is None
        assert threads.name(fake.root, fake.pid) == ""
        with pytest.raises(HostError, match=rf"^process {fake.pid} is gone$"):
            threads.of_process(fake.root, fake.pid)


# Those of the host's own networks are in test_taps.py.
NETWORKS = ("attach.tap", "attach.join", "attach.macvtap")


@pytest.mark.parametrize("name", [name for name in STEPS if name.startswith("attach.") and name not in NETWORKS])
def test_a_fault_at_each_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step fails, the sentence comes out, and QEMU ends: by the power button where the guest runs already."""
    monkeypatch.setenv("KVMSUP_FAULT", f"{name}:error")
    with fake_qemu.running("good") as fake:
        disk = Plug("disk.root", File("/proc/version", False, 0, "raw"), ())
        with pytest.raises(HostError) as caught:
            attach.run("web", fake.pid, wanted(), fake.root, [disk] if name in ("attach.plug", "attach.reset") else [])
        assert str(caught.value) == f"a fault was injected at the step {name} (KVMSUP_FAULT)"
        assert fake.process.wait(10) == (0 if name == "attach.look-again" else -signal.SIGTERM)


def test_main_tells_the_journal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert attach.main("web") == 1
    assert capfd.readouterr().err == "<3>attach is run by kvm@.service, with MAINPID=\n"
    with fake_qemu.running("good") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        assert attach.main("web", fake.root) == 1
        assert fake.process.wait(10) == -signal.SIGTERM
    assert capfd.readouterr().err.splitlines() == [
        "<3>the environment is not a claim: KeyError('KVMSUP_GUEST')",
        "<3>  hint: kvmsup writes it; nobody else should",
    ]
    with fake_qemu.running("vcpu-missing") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        for line in claim_text.render(wanted()).splitlines():
            monkeypatch.setenv(*line.split("=", 1))
        assert attach.main("web", fake.root) == 1
        assert fake.process.wait(10) == -signal.SIGTERM
    assert capfd.readouterr().err == "<3>QEMU has vCPUs 1, 2 were asked for\n"


EDITED = SOUND.replace("1G", "2G")


@pytest.mark.parametrize(
    ("text", "loaded", "told"),
    [
        ("# a comment\n" + SOUND, True, None),
        (EDITED, True, ": memory.size 1G → 2G"),
        (EDITED, False, ""),  # edited once more since
    ],
)
def test_qemu_was_started_from_another_state_of_the_file(
    text: str,
    loaded: bool,
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It goes on only where that makes no difference: what was claimed would be for another guest than this one."""
    for line in claim_text.render(wanted()._replace(loaded="0123")).splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    monkeypatch.setenv(claim_text.GENERATED, agreed.fingerprint(text.encode(), b"") if loaded else "4567")
    with fake_qemu.running("good") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        trees.cpus(fake.root, dict.fromkeys(range(4), ""))
        trees.write(fake.root, "/etc/kvmsup/web.toml", text.removesuffix("\n"))
        before = config.read_guest("web", "web.toml", SOUND.encode()).guest
        running.write(fake.root, "web", changes.flatten(before))
        assert attach.main("web", fake.root) == (told is not None)
        if told is None:
            return
        assert fake.process.wait(10) == -signal.SIGTERM
    assert capfd.readouterr().err.splitlines() == [
        f"<3>its CPUs and memory were claimed for another state of its files than QEMU was started from{told}",
        "<3>  hint: systemctl start kvm@web",
    ]


def test_qemu_has_ended_for_being_started_from_another_state_of_the_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where it finds fewer pages than it was to have, of which it says no more than that."""
    for line in claim_text.render(wanted()._replace(loaded="0123")).splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    monkeypatch.setenv(claim_text.GENERATED, "4567")
    with fake_qemu.running("good") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        fake.process.kill()
        fake.process.wait()
        assert attach.main("web", fake.root) == 1
    assert "its CPUs and memory were claimed for another state of its files" in capfd.readouterr().err


def test_what_qemu_was_started_with_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would run without what is to be plugged in."""
    for line in claim_text.render(wanted()).splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    monkeypatch.setattr(attach, "_EXEC_SECONDS", 0.0)
    monkeypatch.setattr(proc, "environment", lambda _: {})
    with fake_qemu.running("good") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        assert attach.main("web", fake.root) == 1
        assert fake.process.wait(10) == -signal.SIGTERM
        said = f"<3>what QEMU was started with cannot be read: /proc/{fake.pid}/environ\n"
    assert capfd.readouterr().err == said


def test_another_file_was_loaded_since_qemu_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was started goes together, and what is plugged goes with that."""
    disk = Plug("disk.root", File("/proc/version", False, 0, "raw"), ())
    for line in claim_text.render(wanted()._replace(loaded="0123")).splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    monkeypatch.setenv(claim_text.GENERATED, "0123")
    for name, value in plugs.variables([disk]).items():
        monkeypatch.setenv(name, value)
    given: list[Sequence[Plug]] = []
    with fake_qemu.running("good") as fake:
        monkeypatch.setenv("MAINPID", str(fake.pid))
        monkeypatch.setenv(claim_text.GENERATED, "4567")
        for name, value in plugs.variables([disk._replace(about="disk.other")]).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(attach, "run", lambda *arguments: given.append(arguments[-1]))
        assert attach.main("web", fake.root) == 0
    assert given == [(disk,)]


def stopped(fake: fake_qemu.Running, patience: float = 10.0) -> float:
    start = time.monotonic()
    stop.run("web", fake.pid, fake.root, patience)
    return time.monotonic() - start


@pytest.mark.parametrize("behaviour", ["good", "slow", "die-at-powerdown"])
def test_stop(behaviour: str) -> None:
    with fake_qemu.running(behaviour) as fake:
        stopped(fake)
        assert fake.process.wait(10) in (0, 1)


@pytest.mark.parametrize("behaviour", ["ignore-powerdown", "refuse-powerdown"])
def test_stop_cuts_the_power_when_patience_is_over(behaviour: str, capfd: pytest.CaptureFixture[str]) -> None:
    with fake_qemu.running(behaviour) as fake:
        assert stopped(fake, 1.0) >= 0.8
        assert fake.process.wait(10) == 0
    # On a busy machine half of that second can be over before it begins.
    assert re.fullmatch(r"<4>the guest has not shut down within [01] s: cutting its power\n", capfd.readouterr().err)


def test_stop_of_one_that_is_gone() -> None:
    with fake_qemu.running("good") as fake:
        fake.process.kill()
        fake.process.wait()
        assert stopped(fake) < 5


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("silence", "QEMU has not answered in time"),
        ("hang-up", "QEMU closed its monitor"),
        ("bad-greeting", "the monitor did not greet as QMP does"),
        ("not-json", "QEMU sent something that is not JSON"),
    ],
)
def test_stop_says_when_qemu_does_not_listen(behaviour: str, said: str) -> None:
    with fake_qemu.running(behaviour) as fake, pytest.raises(KvmsupError) as caught:
        stopped(fake, 1.0)
    assert str(caught.value) == said
