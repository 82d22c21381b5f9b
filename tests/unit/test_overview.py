# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every guest at a glance, from one answer of systemd's, the claims, control groups and links."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsup.effects import claims, enabled, overview
from kvmsup.effects.systemctl import Loaded, Question, loaded
from kvmsup.errors import HostError
from tests.tree import ROOT
from tests.unit import trees
from tests.unit.hosts import claim
from tests.unit.trees import Systemctl
from tests.unit.trees import systemctl as fake_systemctl

__all__ = ["fake_systemctl"]  # a fixture


LEGEND = """
Legend: LOAD   -> Reflects whether the unit definition was properly loaded.
2 loaded units listed.
"""


def test_lines_of_units() -> None:
    answer = (
        "UNIT           LOAD      ACTIVE   SUB     DESCRIPTION\n"
        "kvm@a.service  loaded    active   running KVM guest a: what  it  is\n"
        "kvm@b.service  loaded    failed   failed  stop\x0cthat\u2028\n"
        "kvm@c.service  not-found inactive dead    kvm@c.service\n"
    )
    assert loaded(answer + LEGEND) == {
        "kvm@a.service": Loaded("active", "running", "KVM guest a: what  it  is"),
        "kvm@b.service": Loaded("failed", "failed", "stop\x0cthat\u2028"),
        "kvm@c.service": Loaded("inactive", "dead", "kvm@c.service"),
    }


def test_a_job_is_no_part_of_the_description() -> None:
    answer = (
        "UNIT           LOAD   ACTIVE       SUB     JOB   DESCRIPTION\n"
        "kvm@a.service  loaded active       running       stop it\n"
        "kvm@b.service  loaded deactivating stop    stop  KVM guest b\n"
    )
    assert [one.description for one in loaded(answer + LEGEND).values()] == ["stop it", "KVM guest b"]


@pytest.mark.parametrize("answer", ["", "\n0 loaded units listed.\n"])
def test_no_units(answer: str) -> None:
    assert loaded(answer) == {}


@pytest.fixture
def root(tmp_path: Path) -> str:
    found = str(tmp_path)
    (tmp_path / "run/kvmsup/claims").mkdir(parents=True)
    for name in ("runs", "stops", "busy", "failed", "down", "new", "ended", "gone"):
        trees.write(found, f"/etc/kvmsup/{name}.toml", 'memory.size = "1G"')
    for name, pids in (("runs", "40"), ("stops", "50"), ("busy", "60\n61"), ("ended", "70"), ("gone", "80")):
        claims.write(found, claim(name))
        trees.write(found, f"/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@{name}.service/cgroup.procs", pids)
    trees.write(found, "/proc/40/comm", "qemu-system-x86")
    trees.write(found, "/proc/70/comm", "kvmsup-guest")
    return found


def test_only_what_is_not_plain_is_asked_about(root: str, fake_systemctl: Systemctl) -> None:
    states = {"runs": "active", "stops": "deactivating", "busy": "active", "failed": "failed", "down": "inactive"}
    states |= {"ended": "active", "gone": "active"}
    log = fake_systemctl({f"kvm@{name}.service": (state, "") for name, state in states.items()})
    found = {one.name: one for one in overview.guests(root)}
    assert list(found) == ["busy", "down", "ended", "failed", "gone", "new", "runs", "stops"]
    first, second = log.read_text().splitlines()
    assert first == "list-units --all --full --plain --legend=yes -- kvm@*.service"
    asked = " ".join(f"kvm@{name}.service" for name in ("busy", "ended", "failed", "gone", "stops"))
    assert second == f"show --property Id,ActiveState,SubState,Result,MainPID -- {asked}"
    assert found["runs"][1:6] == ("active", "running", "success", 40, "What  it is")
    assert found["stops"][1:5] == ("deactivating", "x", "signal", 7)
    assert {found[name].pid for name in ("busy", "ended", "failed", "gone")} == {7}
    assert found["down"][1:5] == ("inactive", "dead", "success", 0)
    assert found["new"][1:6] == ("inactive", "dead", "success", 0, "")


def test_systemd_is_not_kept_waiting_by_a_claim_that_is_none(root: str, fake_systemctl: Systemctl) -> None:
    fake_systemctl({})
    trees.write(root, "/run/kvmsup/claims/runs.env", "nonsense")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(HostError, match="is not a claim"):
            overview.guests(root)
    assert os.listdir("/proc/self/fd") == before


def test_ctrl_c_beside_a_systemctl_that_ends_for_it(
    root: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that does not come must not take its place: --watch would go on."""

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    fake_systemctl({})
    (Path(root) / "bin/systemctl").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(claims, "read_all", interrupted)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt):
        overview.guests(root)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("ignored", [False, True])
def test_who_is_not_told_of_its_children_is_answered(ignored: bool) -> None:
    program = "from kvmsup.effects import systemctl\nprint(systemctl.Question('--version').answer()[:7])"
    if ignored:
        program = f"import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{program}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("systemd\n", "")


def test_no_colours_come_through(fake_systemctl: Systemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_systemctl({})
    (tmp_path / "bin/systemctl").write_text('#!/bin/sh\necho "$SYSTEMD_COLORS"\n')
    monkeypatch.setenv("SYSTEMD_COLORS", "1")
    assert Question("list-units").answer() == "0\n"


def test_who_starts_at_boot(tmp_path: Path) -> None:
    assert enabled.guests(str(tmp_path)) == frozenset()
    units = tmp_path / "etc/systemd/system"
    for link in (
        "multi-user.target.wants/kvm@web.service",
        "kvm-ready@web.service.requires/kvm@db.service",
        "x.target.upholds/kvm@mail.service",
        "x.target.wants/kvmsup-reload.path",
        "kvm@own.service",
        "kvm@drop.service.d/kvm@not.service",
    ):
        (units / link).parent.mkdir(parents=True, exist_ok=True)
        (units / link).symlink_to("/usr/lib/systemd/system/kvm@.service")
    assert enabled.guests(str(tmp_path)) == {"web", "db", "mail"}
    (units / "kvm@web.service").symlink_to("/dev/null")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "run/systemd/system/kvm@db.service").symlink_to("/dev/null")
    assert enabled.guests(str(tmp_path)) == {"mail"}
    (units / "kvm@web.service").unlink()
    (tmp_path / "run/systemd/system/kvm@db.service").unlink()
    assert enabled.guests(str(tmp_path)) == {"web", "db", "mail"}
