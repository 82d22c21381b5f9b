# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemctl reload of a guest: a real QEMU with the guest's own command line, emulating, and threads really pinned."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup import cpulist
from kvmsup.effects import claims, configs, pin, qmp, reconfigure, running, settle, systemctl, threads
from kvmsup.entry import apply
from kvmsup.entry.resident.ballooning import Ballooning
from kvmsup.entry.resident.threads import Threads
from kvmsup.errors import ConfigError, HostError, KvmsupError, QmpError
from kvmsup.model import config
from kvmsup.model.claim import Claim
from kvmsup.plan import agreed, changes, paths, qemu
from kvmsup.plan.unitfile import Part, Variable
from kvmsup.steps import STEPS
from tests.unit import fake_qemu, trees
from tests.unit.hosts import claim
from tests.unit.real_qemu import installed
from tests.unit.trees import Systemctl
from tests.unit.trees import systemctl as fake_systemctl

__all__ = ["fake_systemctl"]  # a fixture

CPUS = sorted(os.sched_getaffinity(0))
FIRST, LAST = str(CPUS[0]), str(CPUS[-1])
WEB = """
[machine]
type = "pc-q35-7.2"
accel = "tcg"
[cpu]
vcpus = 2
maxcpus = 8
sockets = 2
cores = 2
threads = 2
[memory]
size = "64M"
[memory.balloon]
min = "64M"
"""
SHARED = WEB + f"""
[placement]
emulator = "{LAST}"
[placement.vcpu]
""" + "".join(f'{index} = "{FIRST}"\n' for index in range(8))  # fmt: skip


def _literal(part: Part) -> str:
    """As systemd expands it: node 0 is where memory is."""
    return "0" if isinstance(part, Variable) else part


class Guest:
    """A guest web that runs as its file says, below a root of its own."""

    def __init__(self, root: str, text: str) -> None:
        self.root = root
        self.write(text)
        read = config.read_guest("web", "web.toml", text.encode()).guest
        words = [paths.BINARY if shutil.which(paths.BINARY) else installed()]
        for option in qemu.options(read):
            words += ["".join(map(_literal, word)).replace("/run/kvmsup", f"{root}/run/kvmsup") for word in option]
        silent = subprocess.DEVNULL
        self.process = subprocess.Popen(words, stdin=silent, stdout=silent, stderr=silent)
        self.pid = self.process.pid
        pins = read.placement.vcpu
        held = claim("web", map(cpulist.render, pins), dedicated=read.placement.dedicated, emulator=LAST, nodes="")
        self.claim = held._replace(vcpus=read.cpu.vcpus, loaded=self.loaded, size=64 << 20, balloon=64 << 20)
        claims.write(root, self.claim)
        running.write(root, "web", changes.flatten(read))

    def run(self) -> None:
        """Pin its threads and let it run, as attach does."""
        with self.monitor() as monitor:
            named = threads.named_by_qemu(monitor, self.claim)
            for tid, duty in threads.of_guest(self.root, self.pid, self.claim, named).items():
                pin.pin(tid, duty.cpus)
            monitor.execute("cont")

    @property
    def loaded(self) -> str:
        return agreed.fingerprint(configs.read_guest(self.root, "web") or b"", configs.read_host(self.root))

    def write(self, text: str) -> None:
        trees.write(self.root, "/etc/kvmsup/web.toml", text)

    def edit(self, before: str, after: str) -> None:
        file = Path(f"{self.root}/etc/kvmsup/web.toml")
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))

    def monitor(self) -> qmp.Monitor:
        found = qmp.Monitor(f"{self.root}/run/kvmsup/guests/web/admin.qmp", self.pid, time.monotonic() + 20)
        found.negotiate()
        return found

    def reload(self) -> None:
        apply.run("web", self.pid, self.root)

    def ask(self, command: str, **arguments: Any) -> Any:
        with self.monitor() as monitor:
            return monitor.execute(command, **arguments)

    def vcpus(self) -> dict[int, str]:
        """Where the kernel lets each vCPU run, and how."""
        with self.monitor() as monitor:
            tids = qmp.vcpu_threads(monitor)
        return {index: f"{cpulist.render(pin.allowed(tid) or ())} {pin.scheduled(tid)}" for index, tid in tids.items()}

    def others(self) -> set[str]:
        """Where the kernel lets every other thread run."""
        with self.monitor() as monitor:
            tids = qmp.vcpu_threads(monitor).values()
        there = {int(tid) for tid in os.listdir(f"/proc/{self.pid}/task")} - set(tids)
        return {cpulist.render(pin.allowed(tid) or ()) for tid in there}

    @property
    def runs(self) -> bool:
        return bool(self.ask("query-status")["running"])

    @property
    def held(self) -> Claim:
        found = claims.read(self.root, "web")
        assert found
        return found

    def different(self) -> list[str]:
        """What would be told of it now."""
        read = config.read_guest("web", "web.toml", configs.read_guest(self.root, "web") or b"").guest
        keys = running.read(self.root, "web")
        assert keys
        return [one.told for one in changes.differences(keys, changes.flatten(read))]


@contextlib.contextmanager
def started(text: str) -> Iterator[Guest]:
    root = tempfile.mkdtemp(prefix="q-")  # short, because a socket's path may have 107 bytes
    os.makedirs(f"{root}/run/kvmsup/guests/web")
    os.makedirs(f"{root}/run/kvmsup/claims")
    os.symlink("/proc", f"{root}/proc")
    trees.cpus(root, dict.fromkeys(CPUS, ""), {0: cpulist.render(CPUS)})
    found = Guest(root, text)
    try:
        found.run()
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        shutil.rmtree(root)


@pytest.fixture
def web(fake_systemctl: Systemctl) -> Iterator[Guest]:
    fake_systemctl({})
    with started(SHARED) as found:
        yield found


def test_nothing_to_do(web: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    web.reload()
    assert web.held == web.claim
    web.edit("[cpu]", "# only a comment\n[cpu]")
    web.reload()
    assert web.held == web.claim._replace(loaded=web.loaded)
    assert capfd.readouterr().err == "<5>web runs with all that /etc/kvmsup/web.toml says\n" * 2


def test_everything_at_once(web: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    assert web.vcpus() == dict.fromkeys(range(2), f"{FIRST} other")
    web.edit("vcpus = 2", "vcpus = 5")
    web.edit('size = "64M"', 'size = "64M"\nksm = true')
    web.edit(f'emulator = "{LAST}"', f'emulator = "{FIRST}"')
    for index in range(8):
        web.edit(f'\n{index} = "{FIRST}"', f'\n{index} = "{LAST}"')
    web.edit('min = "64M"', 'min = "64M"\nauto = true')
    web.edit("pc-q35-7.2", "pc-q35-7.1")
    web.edit("[machine]", 'description = "front end"\n[machine]')
    web.reload()
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "<5>description (none) → front end, applied",
        "<5>machine.type pc-q35-7.2 → pc-q35-7.1, needs a restart",
        "<5>cpu.vcpus 2 → 5, applied",
        f"<5>placement.emulator {LAST} → {FIRST}, applied",
        *(f"<5>placement.vcpu.{index} {FIRST} → {LAST}, applied" for index in range(8)),
        "<5>memory.ksm false → true, applied",
        "<5>memory.balloon.auto false → true, applied",
    ]
    assert web.vcpus() == dict.fromkeys(range(5), f"{LAST} other")
    assert web.others() == {FIRST}
    assert web.runs
    assert (web.held.vcpus, web.held.ksm, web.held.balloon_auto, web.held.paused) == (5, True, True, False)
    assert {cpulist.render(cpus) for cpus in web.held.vcpu} == {LAST}
    assert web.held.loaded.startswith("-" * 8)
    assert web.different() == ["machine.type pc-q35-7.2 → pc-q35-7.1"]
    # The rest is as it was: once more changes nothing, and with that taken back the next start finds its claim.
    before = web.held
    web.reload()
    assert web.held == before
    web.edit("pc-q35-7.1", "pc-q35-7.2")
    web.reload()
    assert web.held == before._replace(loaded=web.loaded)
    assert not web.different()


def merges(pid: int) -> set[bool]:
    """Whether KSM may merge the guest's memory, by the kernel's word (proc(5), VmFlags mg)."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("Size:")]
    flags = ["mg" in line.split() for line in lines if line.startswith("VmFlags:")]
    return {merged for size, merged in zip(sizes, flags, strict=True) if size == "65536"}


def test_consent_to_merging_comes_and_goes(web: Guest) -> None:
    assert merges(web.pid) == {False}
    web.edit('size = "64M"', 'size = "64M"\nksm = true')
    web.reload()
    assert (merges(web.pid), web.held.ksm) == ({True}, True)
    web.edit("ksm = true", "ksm = false")
    web.reload()
    assert (merges(web.pid), web.held.ksm) == ({False}, False)


def test_vcpus_are_where_qemu_counts_them(web: Guest) -> None:
    """One at a time and several: each index is the place on the board that QEMU gives to that index at a start."""
    web.edit("vcpus = 2", "vcpus = 3")
    web.reload()
    web.edit("vcpus = 3", "vcpus = 8")
    web.reload()
    places = {one["cpu-index"]: tuple(one["props"].values()) for one in web.ask("query-cpus-fast")}
    with started(SHARED.replace("vcpus = 2", "vcpus = 8")) as whole:
        assert places == {one["cpu-index"]: tuple(one["props"].values()) for one in whole.ask("query-cpus-fast")}
    assert sorted(places) == list(range(8))
    assert web.vcpus() == dict.fromkeys(range(8), f"{FIRST} other")


def test_no_added_vcpu_runs_before_it_is_pinned(web: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = settle.restore

    def restore(root: str, claim: Claim, tid: int, duty: Any) -> str:
        if duty.role in ("vCPU 2", "vCPU 3"):
            # Not a tick of CPU time in user mode, and the guest is paused.
            seen.append(web.ask("query-status")["running"])
        return real(root, claim, tid, duty)

    monkeypatch.setattr(settle, "restore", restore)
    web.edit("vcpus = 2", "vcpus = 4")
    web.reload()
    assert seen == [False, False]
    assert web.runs


def test_fewer_vcpus_need_a_restart(web: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    web.edit("vcpus = 2", "vcpus = 1")
    web.reload()
    assert capfd.readouterr().err == ("<5>cpu.vcpus 2 → 1, needs a restart: a vCPU is taken away only by a restart\n")
    assert (web.held, len(web.vcpus())) == (web.claim, 2)


def test_a_guest_that_was_paused_by_hand_stays_paused(web: Guest) -> None:
    web.ask("stop")
    web.edit("vcpus = 2", "vcpus = 3")
    web.reload()
    assert (web.runs, web.held.paused, len(web.vcpus())) == (False, False, 3)


def test_schedulers(fake_systemctl: Systemctl) -> None:
    """Real-time vCPUs need CPUs of their own, so this has as many vCPUs as the machine has CPUs to give."""
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    fake_systemctl({})
    text = WEB.replace("vcpus = 2\nmaxcpus = 8\nsockets = 2\ncores = 2\nthreads = 2", "vcpus = 1")
    text += f'[placement]\ncpus = "dedicated"\nemulator = "{LAST}"\n[placement.vcpu]\n0 = "{FIRST}"\n'
    with started(text) as guest:
        guest.edit("[placement.vcpu]", 'scheduler = "fifo:10"\n[placement.vcpu]')
        guest.reload()
        assert guest.vcpus() == {0: f"{FIRST} fifo:10"}
        guest.edit("fifo:10", "rr:5")
        guest.reload()
        assert guest.vcpus() == {0: f"{FIRST} rr:5"}
        guest.edit('scheduler = "rr:5"\n', "")
        guest.reload()
        assert guest.vcpus() == {0: f"{FIRST} other"}
        assert guest.held.loaded == guest.loaded


# ---- refusals ----


def test_no_real_time_vcpu_where_qemu_itself_runs(fake_systemctl: Systemctl) -> None:
    """As at a start, which would refuse it: the scheduler alone has changed, so that no thread moves."""
    fake_systemctl({})
    text = WEB.replace("vcpus = 2\nmaxcpus = 8\nsockets = 2\ncores = 2\nthreads = 2", "vcpus = 1")
    text += f'[placement]\ncpus = "dedicated"\nemulator = "{LAST}"\n[placement.vcpu]\n0 = "{LAST}"\n'
    with started(text) as guest:
        guest.edit("[placement.vcpu]", 'scheduler = "fifo:10"\n[placement.vcpu]')
        assert refused(guest) == (
            f"placement.emulator: CPU {LAST} is a real-time vCPU's, which would starve QEMU there\n"
            "  hint: choose other CPUs for it, or leave placement.scheduler out"
        )


def refused(web: Guest) -> str:
    """What is said; nothing has changed."""
    before = web.held, web.vcpus(), running.read(web.root, "web")
    with pytest.raises(KvmsupError) as caught:
        web.reload()
    assert (web.held, web.vcpus(), running.read(web.root, "web")) == before
    assert web.runs
    return str(caught.value)


def test_a_conflict_names_the_holder(web: Guest) -> None:
    claims.write(web.root, claim("db", (LAST,), emulator=FIRST))
    trees.write(web.root, "/run/systemd/units/invocation:kvm-setup@db.service", "")
    web.edit(f'\n0 = "{FIRST}"', f'\n0 = "{LAST}"')
    web.edit("vcpus = 2", "vcpus = 4")
    assert refused(web) == (
        f"placement.vcpu: CPU {LAST} is dedicated to guest db\n  hint: choose other CPUs, or stop that guest"
    )


def test_a_broken_file(web: Guest) -> None:
    web.edit('"64M"', '"64MB"')
    with pytest.raises(ConfigError):
        web.reload()
    assert "memory.size" in refused(web)


def test_a_file_that_is_gone(web: Guest) -> None:
    os.unlink(f"{web.root}/etc/kvmsup/web.toml")
    with pytest.raises(HostError) as caught:
        web.reload()
    assert str(caught.value) == "/etc/kvmsup/web.toml is gone\n  hint: web goes on as it is until it is stopped"


def test_a_guest_of_an_older_kvmsup(web: Guest) -> None:
    for damage in (running.remove, lambda root, name: Path(running.path(root, name)).write_text("[1]")):
        damage(web.root, "web")
        assert refused(web) == (
            "it is not known what web was started with: kvmsup was an older one then\n"
            "  hint: systemctl restart kvm@web"
        )


def test_the_lock_is_not_waited_for_long(web: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "_LOCK_SECONDS", 0.1)
    with claims.lock(web.root):
        assert refused(web) == "another guest is being set up or released\n  hint: systemctl reload kvm@web, later"


def test_a_cpu_that_is_not_to_be_had(web: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pin that does not hold: everything goes back to where it was, and the keys are as they were."""
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    web.edit(f'\n0 = "{FIRST}"', f'\n0 = "{LAST}"')
    real = pin.pin

    def fails(tid: int, cpus: frozenset[int]) -> None:
        real(tid, cpus)
        if pin.allowed(tid) == frozenset((CPUS[-1],)) and tid != web.pid:
            raise HostError("the kernel says no")

    monkeypatch.setattr(pin, "pin", fails)
    assert refused(web) == "the kernel says no"
    monkeypatch.undo()
    web.reload()
    assert web.vcpus() == {0: f"{LAST} other", 1: f"{FIRST} other"}


@pytest.mark.parametrize("behaviour", ["silence", "silence-after-greeting", "hang-up", "bad-greeting", "vcpu-missing"])
def test_a_qemu_that_misbehaves(behaviour: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up on in time, with nothing written."""
    fake_systemctl({})
    monkeypatch.setattr(apply, "_QMP_SECONDS", 0.3)
    with fake_qemu.running(behaviour) as fake:
        os.makedirs(f"{fake.root}/run/kvmsup/claims")
        trees.cpus(fake.root, dict.fromkeys(CPUS, ""), {0: cpulist.render(CPUS)})
        read = config.read_guest("web", "web.toml", SHARED.encode()).guest
        trees.write(fake.root, "/etc/kvmsup/web.toml", SHARED.replace("vcpus = 2", "vcpus = 3"))
        claims.write(fake.root, held := claim("web", (FIRST,) * 8, dedicated=False, nodes="")._replace(vcpus=2))
        running.write(fake.root, "web", changes.flatten(read))
        with pytest.raises(QmpError):
            apply.run("web", fake.pid, fake.root)
        assert claims.read(fake.root, "web") == held
        assert running.read(fake.root, "web") == changes.flatten(read)


@pytest.mark.parametrize("behaviour", ["vcpus-vanish", "vcpus-without-end"])
def test_a_qemu_that_miscounts(behaviour: str, fake_systemctl: Systemctl) -> None:
    """What it says does not become a claim that nobody can read: every setup reads all of them, and the supervisor."""
    fake_systemctl({})
    with fake_qemu.running(behaviour) as fake:
        os.makedirs(f"{fake.root}/run/kvmsup/claims")
        trees.cpus(fake.root, dict.fromkeys(CPUS, ""), {0: cpulist.render(CPUS)})
        read = config.read_guest("web", "web.toml", SHARED.encode()).guest
        trees.write(fake.root, "/etc/kvmsup/web.toml", SHARED.replace("vcpus = 2", "vcpus = 3"))
        held = claim("web", (FIRST,) * 8, dedicated=False, emulator=LAST, nodes="")._replace(vcpus=2)
        claims.write(fake.root, held)
        running.write(fake.root, "web", changes.flatten(read))
        with pytest.raises(KvmsupError):
            apply.run("web", fake.pid, fake.root)
        assert claims.read_all(fake.root)["web"].vcpus == 2


# ---- faults ----

ALL = (
    ("vcpus = 2", "vcpus = 4"),
    ('size = "64M"', 'size = "64M"\nksm = true'),
    (f'\n0 = "{FIRST}"', f'\n0 = "{LAST}"'),
)


def done(web: Guest) -> bool:
    placed = {0: f"{LAST} other", **dict.fromkeys(range(1, 4), f"{FIRST} other")}
    return web.vcpus() == placed and merges(web.pid) == {True} and web.runs and web.held.loaded == web.loaded


@pytest.mark.parametrize("name", [name for name in STEPS if name.startswith("apply.")])
def test_an_error_at_each_step(web: Guest, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence comes out, the guest goes on, and what is left to do is done by the next reload."""
    for before, after in ALL:
        web.edit(before, after)
    monkeypatch.setenv("KVMSUP_FAULT", f"{name}:error")
    with pytest.raises(HostError, match=f"^a fault was injected at the step {name} ") as caught:
        web.reload()
    if name in ("apply.add", "apply.pin-added"):
        there = 2 if name == "apply.add" else 3
        assert str(caught.value).endswith(f"; the guest goes on with {there} of 4 vCPUs")
    assert web.runs == (name != "apply.run")
    if name == "apply.pin":
        assert (web.held, web.vcpus()) == (web.claim, dict.fromkeys(range(2), f"{FIRST} other"))
    monkeypatch.delenv("KVMSUP_FAULT")
    if not web.runs:
        assert settle.resume(web.root, "web", web.pid)
        assert web.runs and not web.held.paused
    web.reload()
    assert done(web)
    assert not web.different()


def test_a_guest_is_not_left_paused_by_a_qemu_that_has_used_up_the_time(
    web: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by the look at what vCPUs there are then, which fails, too."""
    web.edit("vcpus = 2", "vcpus = 4")

    def never(monitor: qmp.Monitor, _slot: reconfigure.Slot) -> int:
        monitor.deadline = time.monotonic()
        raise QmpError("QEMU did not answer in time")

    monkeypatch.setattr(reconfigure, "add", never)
    with pytest.raises(QmpError):
        web.reload()
    assert web.runs and not web.held.paused


def killed(web: Guest, name: str) -> None:
    """Reload in a process of its own that is gone at the step `name` as by kill -9."""
    child = os.fork()
    if not child:
        os.environ["KVMSUP_FAULT"] = f"{name}:kill"
        with contextlib.suppress(BaseException):
            web.reload()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


@pytest.mark.parametrize("name", [name for name in STEPS if name.startswith("apply.")])
def test_a_kill_at_each_step(web: Guest, name: str) -> None:
    """What the supervisor does next puts threads where the claim says and lets the guest go on; then a reload."""
    for before, after in ALL:
        web.edit(before, after)
    killed(web, name)
    assert web.runs or web.held.paused
    list(settle.guest(web.root, "web", web.pid))
    settle.resume(web.root, "web", web.pid)
    assert web.runs and not web.held.paused
    for index, where in web.vcpus().items():
        assert where == f"{cpulist.render(web.held.vcpu[index])} other"
    web.reload()
    assert done(web)


def test_a_kill_and_a_change_of_mind(web: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    """The file says again what it said before the reload that was killed: that too has to be applied."""
    original = Path(f"{web.root}/etc/kvmsup/web.toml").read_text()
    for before, after in ALL:
        web.edit(before, after)
    killed(web, "apply.hold")
    web.write(original)
    capfd.readouterr()
    web.reload()
    assert "cpu.vcpus 4 → 2, needs a restart: a vCPU is taken away only by a restart" in capfd.readouterr().err
    assert web.vcpus() == dict.fromkeys(range(4), f"{FIRST} other")
    assert merges(web.pid) == {False}


def test_a_paused_guest_is_let_go_by_the_next_reload(web: Guest) -> None:
    """Also when the file asks for nothing any more and there is no supervisor."""
    web.edit("vcpus = 2", "vcpus = 4")
    killed(web, "apply.run")
    assert not web.runs and web.held.paused
    web.edit("vcpus = 4", "vcpus = 4 # as it is")
    web.reload()
    assert web.runs and not web.held.paused


# ---- the supervisor ----


@pytest.fixture
def supervised(web: Guest, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """As systemd would say, the guest runs."""
    answer = {"ActiveState": "active", "MainPID": str(web.pid)}
    monkeypatch.setattr(systemctl, "show", lambda names, _: dict.fromkeys(names, answer))
    return web


def test_the_supervisor_lets_a_paused_guest_go(supervised: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    web, task = supervised, Threads(supervised.root)
    web.edit("vcpus = 2", "vcpus = 4")
    killed(web, "apply.pin-added")
    assert not web.runs
    capfd.readouterr()
    # While somebody is at the claims, such as the reload itself, it is left to them.
    task.when["web"] = 0.0
    with claims.lock(web.root):
        task.act()
    assert not web.runs and task.due()
    task.when["web"] = 0.0
    task.act()
    assert web.runs and not web.held.paused and task.due() is None
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("vCPU 2 (thread ") and said[1:] == [
        "a reload that ended in the middle had left it paused"
    ]
    # An administrator's pause is theirs.
    web.ask("stop")
    task.when["web"] = 0.0
    task.act()
    assert not web.runs


def shows_once(show: Callable[..., Any]) -> Callable[..., Any]:
    """And is then too busy."""
    answers = [show]

    def asked(*arguments: Any) -> Any:
        if not answers:
            raise HostError("systemctl show: Connection timed out")
        return answers.pop()(*arguments)

    return asked


def test_the_supervisor_tries_again_to_let_a_paused_guest_go(
    supervised: Guest, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as its QEMU does not answer, which is told once."""
    web, task = supervised, Threads(supervised.root)
    web.edit("vcpus = 2", "vcpus = 4")
    killed(web, "apply.pin-added")
    monkeypatch.setattr(settle, "_QMP_SECONDS", 0.2)
    web.process.send_signal(signal.SIGSTOP)
    capfd.readouterr()
    for _ in range(2):
        task.when["web"] = 0.0
        task.act()
        assert task.due()
    assert capfd.readouterr().err.count("its threads could not be looked at") == 1
    with monkeypatch.context() as patched:
        patched.setattr(systemctl, "show", shows_once(systemctl.show))
        task.when["web"] = 0.0
        with pytest.raises(HostError):
            task.act()
    assert task.due()
    web.process.send_signal(signal.SIGCONT)
    task.when["web"] = 0.0
    task.act()
    assert web.runs and not web.held.paused and task.due() is None


def test_the_supervisor_does_not_undo_a_reload(supervised: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while it asks QEMU for the threads: where they were is somebody else's by now."""
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    web, ask = supervised, threads.ask
    web.edit(f'\n0 = "{FIRST}"', f'\n0 = "{LAST}"')

    def asked(*arguments: Any) -> Any:
        found = ask(*arguments)
        web.reload()
        return found

    monkeypatch.setattr(threads, "ask", asked)
    assert list(settle.guest(web.root, "web", web.pid)) == []
    assert web.vcpus() == {0: f"{LAST} other", 1: f"{FIRST} other"}


def test_the_supervisor_knows_new_bounds_of_a_balloon(supervised: Guest) -> None:
    web, task = supervised, Ballooning(supervised.root)
    claims.write(web.root, web.held._replace(balloon_auto=True))
    task._find_guests()
    known = task.guests["web"]
    claims.write(web.root, web.held._replace(balloon=32 << 20))
    task.job_finished("kvm@web.service")
    task._find_guests()
    assert task.guests["web"] is known
    assert known.claim.balloon == 32 << 20


# ---- as systemd runs it ----


def test_main(web: Guest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert apply.main("web", web.root) == 1
    monkeypatch.setenv("MAINPID", str(web.pid))
    assert apply.main("web", web.root) == 0
    web.edit('"64M"', '"64MB"')
    assert apply.main("web", web.root) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "<3>apply is run by systemctl reload, with MAINPID="
    assert said[1] == "<5>web runs with all that /etc/kvmsup/web.toml says"
    assert any(line.startswith("<3>/etc/kvmsup/web.toml:12:8: memory.size: ") for line in said[2:])


def test_an_ended_guest(web: Guest) -> None:
    web.edit("vcpus = 2", "vcpus = 3")
    web.process.kill()
    web.process.wait()
    with pytest.raises(QmpError, match="^QEMU is gone: "):
        web.reload()
