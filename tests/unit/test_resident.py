# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tasks of the supervisor: when they are due, and that what fails is tried again."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from kvmsup.effects import claims, systemctl
from kvmsup.entry.resident import threads
from kvmsup.entry.resident.lock import lock_now
from kvmsup.entry.resident.merging import Merging
from kvmsup.entry.resident.sweeping import Sweeping
from kvmsup.errors import HostError, KvmsupError
from tests.unit import trees
from tests.unit.hosts import claim
from tests.unit.trees import Systemctl
from tests.unit.trees import systemctl as fake_systemctl

__all__ = ["fake_systemctl"]  # a fixture


@pytest.fixture
def root(tmp_path: Path) -> str:
    found = str(tmp_path)
    trees.cpus(found, dict.fromkeys(range(4), ""))
    Path(f"{found}/run/kvmsup/claims").mkdir(parents=True)
    claims.write(found, claim("web"))
    return found


def test_nothing_is_due_while_nothing_happens(root: str) -> None:
    task = threads.Threads(root)
    assert task.due() is None
    task.job_finished("sshd.service")
    assert task.due() is None
    task.job_finished("kvm@web.service")
    assert 0 < (task.due() or 0) - time.monotonic() <= 1


def test_every_guest_is_looked_at_after_a_shake(root: str) -> None:
    claims.write(root, claim("db"))
    task = threads.Threads(root)
    task.shaken("cpu3 offline")
    assert task.when.keys() == {"web", "db"}
    assert set(task.shaken_by.values()) == {"cpu3 offline"}


def test_what_fails_is_tried_again(root: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise HostError("systemctl show: Connection timed out")

    fake_systemctl({"kvm@web.service": ("activating", "start")})
    task = threads.Threads(root)
    task.when["web"] = 0.0
    with monkeypatch.context() as patched:
        patched.setattr(systemctl, "show", busy)
        with pytest.raises(KvmsupError):
            task.act()
    assert (task.due() or 0) > time.monotonic()
    task.when["web"] = 0.0
    task.act()  # it is only starting: that is attach's
    assert task.due() is None


def test_a_lock_that_is_held_is_not_waited_for(root: str) -> None:
    """Nor is a start left alone for longer than somebody is at the claims."""
    task = threads.Threads(root)
    task.when["web"] = 0.0
    with claims.lock(root):
        task.act()
    assert 0 < (task.due() or 0) - time.monotonic() <= 1


def test_the_lock_is_held_under_a_watchdog(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is over with it, also where it could not be had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with lock_now(root):
            assert systemd.recv(99) == b"WATCHDOG_USEC=30000000"
            with pytest.raises(claims.Busy), lock_now(root):
                pass
            assert [systemd.recv(99), systemd.recv(99)] == [b"WATCHDOG_USEC=30000000", b"WATCHDOG_USEC=0"]
        assert systemd.recv(99) == b"WATCHDOG_USEC=0"


def test_a_claim_that_no_release_will_see_to_is_given_back(root: str, fake_systemctl: Systemctl) -> None:
    """As of a restart whose start was called off; at the supervisor's start, and after each job of a setup unit."""
    fake_systemctl(
        {f"{kind}@{name}.service": ("inactive", "") for kind in ("kvm", "kvm-setup") for name in ("web", "db")}
    )
    task = Sweeping(root)
    assert (task.due() or 0) <= time.monotonic()
    with claims.lock(root):
        task.act()
    assert (task.due() or 0) > time.monotonic()
    task.act()
    assert (claims.names(root), task.due()) == ([], None)
    claims.write(root, claim("db"))
    task.job_finished("kvm@db.service")
    task.shaken("cpu3 offline")
    assert task.due() is None
    task.job_finished("kvm-setup@db.service")
    assert 0 < (task.due() or 0) - time.monotonic() <= 1
    task.act()
    assert claims.names(root) == []


def test_a_sweep_that_fails_is_tried_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise HostError("systemctl list-jobs: Connection timed out")

    monkeypatch.setattr(systemctl, "units", busy)
    task = Sweeping(root)
    with pytest.raises(HostError):
        task.act()
    assert 5 < (task.due() or 0) - time.monotonic() <= 10


def test_one_shake_after_the_other_postpones_nothing(root: str) -> None:
    task = threads.Threads(root)
    task.shaken("daemon-reload")
    first = task.due()
    time.sleep(0.01)
    task.shaken("daemon-reload")
    assert task.due() == first


def test_a_kernel_without_ksm_is_told_once(root: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = "<5>this kernel has no KSM: ksm = true of web is of no use\n"
    claims.write(root, claim("web", ksm=True))
    task = Merging(root, lambda _: None)
    for _ in range(2):
        task.act()
    assert capfd.readouterr().err == said
    claims.remove(root, "web")
    task.act()
    trees.write(root, "/etc/kvmsup.toml", '[ksm]\npolicy = "never"')
    claims.write(root, claim("web", ksm=True))
    task.act()
    assert capfd.readouterr().err == ""
