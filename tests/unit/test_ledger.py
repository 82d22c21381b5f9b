# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who holds, who is leaving, and giving everything back, also when that is interrupted anywhere."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest

from kvmsup.effects import claims, fence, files, hugepages, ledger, systemctl
from kvmsup.effects.systemctl import Unit
from kvmsup.entry import release
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.steps import STEPS
from tests.unit import trees
from tests.unit.hosts import claim
from tests.unit.trees import PAGE, Pools, Systemctl, pools, small_run
from tests.unit.trees import systemctl as fake_systemctl

__all__ = ["fake_systemctl", "pools", "small_run"]  # fixtures

HOLDING, LEAVING, STALE = ledger.HOLDING, ledger.LEAVING, ledger.STALE


@pytest.mark.parametrize(
    ("setup", "guest", "standing"),
    [
        # (state, job) of kvm-setup@ and of kvm@
        (("inactive", ""), ("inactive", ""), STALE),
        (("failed", ""), ("failed", ""), STALE),
        (("inactive", ""), ("active", ""), STALE),
        (("inactive", "start"), ("inactive", "start"), HOLDING),
        (("activating", "start"), ("inactive", "start"), HOLDING),
        (("active", ""), ("inactive", "start"), HOLDING),
        (("active", ""), ("activating", "start"), HOLDING),
        (("active", ""), ("active", ""), HOLDING),
        (("active", ""), ("active", "stop"), LEAVING),
        (("active", ""), ("deactivating", "stop"), LEAVING),
        (("active", ""), ("deactivating", ""), LEAVING),
        (("active", ""), ("deactivating", "restart"), HOLDING),
        (("active", "restart"), ("deactivating", "restart"), HOLDING),
        (("deactivating", "stop"), ("inactive", ""), LEAVING),
        (("deactivating", "restart"), ("inactive", "start"), HOLDING),
        (("deactivating", ""), ("inactive", ""), LEAVING),
        (("active", "stop"), ("inactive", ""), LEAVING),
        (("active", ""), ("inactive", ""), LEAVING),
        (("active", ""), ("failed", ""), LEAVING),
        (("active", ""), ("activating", ""), HOLDING),
    ],
)
def test_standing(setup: tuple[str, str], guest: tuple[str, str], standing: str, fake_systemctl: Systemctl) -> None:
    fake_systemctl({"kvm-setup@web.service": setup, "kvm@web.service": guest})
    assert ledger.standings(["web"]) == {"web": standing}


def test_standing_is_total() -> None:
    """Every pair of states has a standing, and a setup unit that is down without a job is the only stale one."""
    states = [Unit(active, "x", job) for active in ("inactive", "failed", "active", "activating", "deactivating")
              for job in ("", "start", "stop", "restart", "verify-active")]  # fmt: skip
    for setup, guest in itertools.product(states, states):
        assert (ledger._standing(setup, guest) == STALE) is (setup.active in ("inactive", "failed") and not setup.job)


def test_units_are_asked_once(fake_systemctl: Systemctl) -> None:
    log = fake_systemctl({f"kvm{kind}@{name}.service": ("active", "") for name in "ab" for kind in ("", "-setup")})
    assert ledger.standings(["b", "a"]) == {"a": HOLDING, "b": HOLDING}
    units = "kvm-setup@a.service kvm@a.service kvm-setup@b.service kvm@b.service"
    assert log.read_text().splitlines() == [
        "list-jobs --full --plain --no-legend",
        f"show --property Id,ActiveState,SubState -- {units}",
    ]


def test_systemctl_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        systemctl.daemon_reload()
    assert str(caught.value) == "systemctl cannot be run: No such file or directory"
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 'no bus' >&2\nexit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    with pytest.raises(HostError) as caught:
        systemctl.units(["x.service"])
    assert str(caught.value) == "systemctl list-jobs --full --plain --no-legend: no bus"


def hangs(*_: object) -> None:
    raise TimeoutError


def test_systemctl_logs_more_than_a_pipe_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As SYSTEMD_LOG_LEVEL=debug makes it: 500 bytes for each unit."""
    script = tmp_path / "systemctl"
    script.write_text("#!/bin/sh\nhead -c 1000000 /dev/zero >&2\necho 7 web.service start running\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    try:
        assert systemctl.jobs() == {"web.service": "start"}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2min", 120.0),
        ("1min 30s", 90.0),
        ("500ms", 0.5),
        ("1h 1min 1s 1ms 1us", 3661.001001),
        ("1w 2d", 777600.0),
        ("1month", 2629800.0),
        ("1y 1month 2w", 31557600.0 + 2629800.0 + 1209600.0),
        ("1.5s", 1.5),
        ("infinity", 86400.0),
    ],
)
def test_stop_timeout(text: str, seconds: float, fake_systemctl: Systemctl) -> None:
    log = fake_systemctl({})
    (log.parent / "show").write_text(f"Id=kvm@web.service\nTimeoutStopUSec={text}\n")
    assert systemctl.stop_timeout("kvm@web.service") == pytest.approx(seconds)


@pytest.fixture
def root(tmp_path: Path, pools: Pools, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host with a pool of 5 pages on each of two nodes, and room for 100."""
    monkeypatch.setattr(hugepages, "_SETTLE_SECONDS", 0.0)
    trees.cpus(str(tmp_path), {number: "" for number in range(4)}, {0: "0-1", 1: "2-3"})
    os.makedirs(f"{tmp_path}/run/kvmsup/claims")
    for node in (0, 1):
        pools.create(node, 5, room=100)
    return str(tmp_path)


def guest_starts(root: str, pools: Pools, name: str, **changed: object) -> Claim:
    """A guest with 10 pages on node 0 that were all added to the pool."""
    found = claim(name, page_size=PAGE, pages={0: 10}, grown={0: 10}, before={0: pools.total(0)})._replace(**changed)  # type: ignore[arg-type]
    claims.write(root, found)
    pools.attribute_written(f"{root}{pools.directory(0)}/nr_hugepages", str(pools.total(0) + 10))
    return found


@pytest.mark.usefixtures("fake_systemctl")
@pytest.mark.parametrize("name", [name for name in STEPS if name.startswith("release.") and name != "release.lock"])
def test_a_release_can_end_anywhere_and_be_done_again(
    root: str, pools: Pools, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest_starts(root, pools, "web")
    for _ in range(2):
        monkeypatch.setenv("KVMSUP_FAULT", f"{name}:error")
        with pytest.raises(HostError, match=f"^a fault was injected at the step {name} "):
            ledger.release(root, claims.read_all(root)["web"], [])
    monkeypatch.delenv("KVMSUP_FAULT")
    assert ledger.release(root, claims.read_all(root)["web"], []) == []
    assert claims.read_all(root) == {}
    assert pools.total(0) == 5


@pytest.mark.usefixtures("fake_systemctl")
def test_a_setup_that_ended_in_the_middle_is_undone_before_others_change_the_pool(root: str, pools: Pools) -> None:
    # 10 were planned and 4 came.
    claims.write(root, claim("web", held=False, page_size=PAGE, pages={0: 10}, grown={0: 10}, before={0: 5}))
    pools.attribute_written(f"{root}{pools.directory(0)}/nr_hugepages", "9")
    assert ledger.sweep(root, claims.read_all(root), keep="db") == {}
    assert pools.total(0) == 5
    assert claims.read_all(root) == {}


@pytest.mark.usefixtures("fake_systemctl")
def test_a_release_undoes_first_what_ended_in_the_middle(root: str, pools: Pools) -> None:
    """A setup that was refused, 4 of its 10 pages having come, while another guest's release waited for the lock."""
    guest_starts(root, pools, "web")
    claims.write(root, claim("db", held=False, page_size=PAGE, pages={0: 10}, grown={0: 10}, before={0: 15}))
    pools.attribute_written(f"{root}{pools.directory(0)}/nr_hugepages", "19")
    assert release.run("web", root) == []
    assert (claims.read_all(root), pools.total(0)) == ({}, 5)
    assert release.run("db", root) == []


@pytest.mark.usefixtures("fake_systemctl")
def test_a_release_that_was_killed_is_undone_by_the_next_of_another_guest(
    root: str, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest_starts(root, pools, "web")
    guest_starts(root, pools, "db")
    monkeypatch.setenv("KVMSUP_FAULT", "release.pages:error")
    with pytest.raises(HostError):
        release.run("web", root)
    monkeypatch.delenv("KVMSUP_FAULT")
    assert release.run("db", root) == []
    assert (claims.read_all(root), pools.total(0)) == ({}, 5)


@pytest.mark.usefixtures("fake_systemctl")
@pytest.mark.parametrize("held", [True, False])
def test_a_node_that_is_gone(root: str, pools: Pools, held: bool) -> None:
    """It has taken its pool along; what was added on others is given back."""
    guest_starts(root, pools, "web", pages={0: 10, 1: 6}, grown={0: 10, 1: 6}, before={0: 5, 1: 0}, held=held)
    shutil.rmtree(f"{root}/sys/devices/system/node/node1")
    assert release.run("web", root) == []
    assert (claims.read_all(root), pools.total(0)) == ({}, 5)


def test_a_claim_that_cannot_be_given_back_stands_in_nobodys_way(
    root: str,
    pools: Pools,
    fake_systemctl: Systemctl,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is told as its guest's; what others have added to its pool by the time it can be is theirs."""
    fake_systemctl({"kvm-setup@web.service": ("inactive", ""), "kvm@web.service": ("inactive", "")})
    guest_starts(root, pools, "web")
    monkeypatch.setenv("KVMSUP_FAULT", "release.fence:error")
    assert list(ledger.sweep(root, claims.read_all(root), keep="db")) == ["web"]
    assert "a fault was injected at the step release.fence" in capfd.readouterr().err
    assert pools.total(0) == 5
    monkeypatch.delenv("KVMSUP_FAULT")
    db = guest_starts(root, pools, "db")
    stands = claims.read_all(root)["web"]
    assert ledger.release(root, db, [stands]) == []  # nothing is promised to web any more
    assert pools.total(0) == 5
    pools.attribute_written(f"{root}{pools.directory(0)}/nr_hugepages", "15")  # by an administrator
    assert ledger.sweep(root, claims.read_all(root), keep="db") == {}
    assert (claims.read_all(root), pools.total(0)) == ({}, 15)


def test_sweep(root: str, pools: Pools, fake_systemctl: Systemctl) -> None:
    for name in ("down", "mine", "new", "running", "surely"):
        guest_starts(root, pools, name)
    os.makedirs(f"{root}/run/systemd/units")
    os.symlink("0123", f"{root}/run/systemd/units/invocation:kvm-setup@surely.service")
    states = {"down": ("failed", ""), "new": ("inactive", "start"), "running": ("active", "")}
    both = {f"{kind}@{name}.service": state for name, state in states.items() for kind in ("kvm-setup", "kvm")}
    log = fake_systemctl(both)
    left = ledger.sweep(root, claims.read_all(root), keep="mine")
    assert sorted(left) == sorted(claims.read_all(root)) == ["mine", "new", "running", "surely"]
    assert pools.total(0) == 5 + 4 * 10
    asked = " ".join(f"kvm-setup@{name}.service kvm@{name}.service" for name in sorted(states))
    assert f"-- {asked}\n" in log.read_text()


def test_what_the_system_does_not_let_go_of_is_that_guests_alone(
    root: str, pools: Pools, fake_systemctl: Systemctl, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is told once, however often somebody tries."""
    fake_systemctl({"kvm-setup@web.service": ("inactive", ""), "kvm@web.service": ("inactive", "")})
    guest_starts(root, pools, "web")
    os.makedirs(f"{root}/run/kvmsup/running/web.json")
    for _ in range(3):
        assert list(ledger.sweep(root, claims.read_all(root))) == ["web"]
    assert capfd.readouterr().err.count("running/web.json: cannot remove: Is a directory") == 1
    os.rmdir(f"{root}/run/kvmsup/running/web.json")
    assert ledger.sweep(root, claims.read_all(root)) == {}
    assert pools.total(0) == 5


@pytest.mark.usefixtures("fake_systemctl")
def test_what_is_still_in_use_is_said_beside_what_else_goes_wrong(
    root: str, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = guest_starts(root, pools, "web")
    pools.use(0, 8)
    monkeypatch.setenv("KVMSUP_FAULT", "release.fence:error")
    with pytest.raises(
        HostError, match=r"\(KVMSUP_FAULT\); 3 hugepages of 2M on node 0 that were added for web are still"
    ):
        ledger.release(root, held, [])


@pytest.mark.usefixtures("fake_systemctl")
def test_what_cannot_be_given_back_is_said(root: str, pools: Pools) -> None:
    held = guest_starts(root, pools, "web")
    pools.use(0, 8)
    assert ledger.release(root, held, []) == [
        "3 hugepages of 2M on node 0 that were added for web are still in use or gone"
    ]
    assert pools.total(0) == 8


@pytest.mark.usefixtures("fake_systemctl")
def test_a_full_run_keeps_no_pages(root: str, pools: Pools, small_run: Path) -> None:
    guest_starts(root, pools, "web")
    trees.fill(small_run)
    with pytest.raises(files.NoRoom, match=r"web\.env: cannot write: No space left on device$"):
        claims.write(root, claims.read_all(root)["web"])
    assert os.listdir(small_run / "kvmsup/claims") == ["web.env"]
    assert ledger.release(root, claims.read_all(root)["web"], []) == []
    assert (claims.read_all(root), pools.total(0)) == ({}, 5)


@pytest.mark.usefixtures("fake_systemctl")
@pytest.mark.parametrize("text", ["short\n", "a text that is longer than what was there\n", ""])
def test_overwriting_leaves_nothing_of_the_old_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text("what was there\n")
    files.overwrite(str(path), text)
    assert path.read_text() == text


@pytest.mark.parametrize("more", [200, 3 * 4096])
def test_overwriting_needs_another_page(small_run: Path, more: int) -> None:
    """The kernel writes the part that there is room for, and calls that success."""
    path, old = small_run / "file", "a" * 4000 + "\n"
    path.write_text(old)
    trees.fill(small_run)
    files.overwrite(str(path), "b" * 4095 + "\n")
    files.overwrite(str(path), old)
    with pytest.raises(files.NoRoom, match="No space left on device$"):
        files.overwrite(str(path), "b" * (4000 + more) + "\n")
    assert path.read_text() == old


@pytest.mark.usefixtures("fake_systemctl")
def test_what_a_killed_write_has_left_is_swept(root: str, pools: Pools) -> None:
    guest_starts(root, pools, "web")
    os.makedirs(f"{root}/run/kvmsup/running")
    parts = [Path(f"{root}/run/kvmsup/{name}.123.part") for name in ("claims/web.env", "running/web.json")]
    for part in parts:
        part.write_text("KVMSUP_GUEST=we")
    ledger.sweep(root, claims.read_all(root), keep="web")
    assert not any(part.exists() for part in parts)
    assert list(claims.read_all(root)) == ["web"]


@pytest.mark.parametrize("controllers", [None, "cpu io memory pids", "cpuset cpu io"])
def test_guests_of_both_kinds_without_cpuset(root: str, controllers: str | None) -> None:
    """systemd takes AllowedCPUs= and does nothing about it."""
    if controllers is not None:
        trees.write(root, "/sys/fs/cgroup/cgroup.controllers", controllers)
    owner, shared = claim("rt", ["1"]), claim("web", ["0-3"], dedicated=False)
    fence.check(root, [owner, owner])
    fence.check(root, [shared])
    fence.check(root, [])
    if controllers and "cpuset" in controllers:
        fence.check(root, [owner, shared])
        return
    with pytest.raises(HostError) as caught:
        fence.check(root, [owner, shared])
    assert str(caught.value) == (
        "without the cpuset controller shared guests cannot be kept off the CPUs that dedicated ones own\n"
        "  hint: kvmsup host says what is missing; guests of one kind can run meanwhile"
    )
