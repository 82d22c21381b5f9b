# SPDX-License-Identifier: LGPL-2.1-or-later
"""setup and release below a root of files: what is claimed, what is refused, and that nothing stays behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kvmsup import cpulist
from kvmsup.effects import claims, configs, hugepages, identity, kernel, numa_maps, systemctl
from kvmsup.entry import release, setup
from kvmsup.entry.request import Request
from kvmsup.errors import HostError, KvmsupError, Refusal
from kvmsup.model import config
from kvmsup.model.claim import Claim, Held
from kvmsup.plan import agreed
from kvmsup.steps import STEPS
from tests.unit import trees
from tests.unit.hosts import claim, topology
from tests.unit.trees import PAGE, Pools, Systemctl, pools
from tests.unit.trees import systemctl as fake_systemctl

__all__ = ["fake_systemctl", "pools"]  # fixtures

WEB = """
[machine]
type = "pc-q35-7.2"
[cpu]
vcpus = 2
[placement]
cpus = "dedicated"
[memory]
size = "20M"
hugepages = "2M"
"""


@pytest.fixture
def root(tmp_path: Path, pools: Pools, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two nodes of two cores with two siblings, 3 hugepages on each node and room for 12; guest web is loaded."""
    found = str(tmp_path)
    fake_systemctl({})
    monkeypatch.setattr(hugepages, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(kernel, "version", lambda: (6, 12))
    trees.cpus(found, {number: f"{number % 4},{number % 4 + 4}" for number in range(8)}, {0: "0-1,4-5", 1: "2-3,6-7"})
    for node in (0, 1):
        pools.create(node, 3, room=12)
        trees.write(found, f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemFree: 99999 kB")
    trees.write(found, "/dev/kvm", "")
    os.makedirs(f"{found}/run/kvmsup/claims")
    trees.write(found, "/etc/kvmsup/web.toml", WEB)
    load(found, monkeypatch)
    return found


def load(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd does at a daemon-reload."""
    content = configs.read_guest(root, "web") or b""
    monkeypatch.setenv(agreed.LOADED, agreed.fingerprint(content, configs.read_host(root)))


def test_what_takes_long_is_in_the_status_of_the_unit(
    root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        setup.run("web", root)
        with pytest.raises(BlockingIOError):  # 14M come at once
            systemd.recv(100)
        assert release.run("web", root) == []
        monkeypatch.setattr(setup, "_TOLD_BYTES", 14 << 20)
        setup.run("web", root)
        assert [systemd.recv(100), systemd.recv(100)] == [b"STATUS=making 7 hugepages of 2M on node 0", b"STATUS="]


def test_setup_and_release(root: str, pools: Pools) -> None:
    setup.run("web", root)
    held = claims.read_all(root)["web"]
    assert held.held and held.dedicated
    assert list(map(cpulist.render, held.vcpu)) == ["1", "5"]
    assert (cpulist.render(held.emulator), cpulist.render(held.nodes)) == ("0,4", "0")
    assert (held.page_size, held.pages, held.grown) == (PAGE, {0: 10}, {0: 7})
    assert pools.total(0) == 10
    # Once more, as at a restart: nothing changes.
    setup.run("web", root)
    assert (claims.read_all(root)["web"], pools.total(0)) == (held, 10)
    assert release.run("web", root) == []
    assert release.run("web", root) == []
    assert (claims.read_all(root), pools.total(0)) == ({}, 3)


@pytest.mark.parametrize("name", [name for name in STEPS if name.startswith("setup.")])
def test_whatever_fails_the_release_leaves_all_as_it_was(
    root: str, pools: Pools, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVMSUP_FAULT", f"{name}:error")
    with pytest.raises(HostError, match=f"^a fault was injected at the step {name} "):
        setup.run("web", root)
    monkeypatch.delenv("KVMSUP_FAULT")
    release.run("web", root)
    assert (claims.read_all(root), pools.total(0), pools.total(1)) == ({}, 3, 3)
    setup.run("web", root)
    assert pools.total(0) == 10


@pytest.mark.parametrize("name", ["setup.intend", "setup.reserve", "setup.fence", "setup.hold"])
def test_a_killed_setup_is_made_good_by_the_next(
    root: str, pools: Pools, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        monkeypatch.setenv("KVMSUP_FAULT", f"{name}:error")
        with pytest.raises(HostError):
            setup.run("web", root)
    monkeypatch.delenv("KVMSUP_FAULT")
    setup.run("web", root)
    assert claims.read_all(root)["web"].grown == {0: 7}
    assert release.run("web", root) == []
    assert pools.total(0) == 3


def test_shortfall(root: str, pools: Pools) -> None:
    pools.create(0, 3, room=8)
    with pytest.raises(Refusal) as caught:
        setup.run("web", root)
    assert str(caught.value) == (
        "node 0 is short of 2 hugepages of 2M: 10 needed, 7 to be added to a pool of 3 with 3 free, 5 came\n"
        "  hint: 97M are free, but not in pieces of 2M, also after compacting: stop a guest there, or reserve at boot,"
        " on the kernel command line: hugepagesz=2M hugepages=0:10,1:3"
    )
    release.run("web", root)
    assert (claims.read_all(root), pools.total(0)) == ({}, 3)


def test_a_shortfall_names_the_processes_that_have_pages(
    root: str, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of this size on this node; and what a node has no memory for is not tried."""
    trees.write(root, "/etc/kvmsup/web.toml", WEB.replace('"dedicated"', '"dedicated"\nnodes = "0"'))
    load(root, monkeypatch)
    pools.create(0, 5, used=5)
    trees.write(root, "/sys/devices/system/node/node0/meminfo", "Node 0 MemFree: 12288 kB")
    for pid, name, kilobytes, line in (
        (7, "postgres", 4096, "7f0 default file=/anon_hugepage huge N0=2 N1=9 kernelpagesize_kB=2048"),
        (8, "dpdk app", 2048, "7f0 bind:0 huge N0=1 kernelpagesize_kB=2048\n7f1 default N0=99 kernelpagesize_kB=4"),
        (9, "elsewhere", 2048, "7f0 default huge N1=1 kernelpagesize_kB=2048"),
        (10, "giant", 1 << 20, "7f0 default huge N0=1 kernelpagesize_kB=1048576"),
        (11, "plain", 0, "7f0 default N0=5 kernelpagesize_kB=2048"),
    ):
        trees.write(root, f"/proc/{pid}/stat", trees.stat(name, 0))
        trees.write(root, f"/proc/{pid}/status", f"HugetlbPages:\t{kilobytes} kB")
        trees.write(root, f"/proc/{pid}/numa_maps", line)
    with pytest.raises(Refusal) as caught:
        setup.run("web", root)
    assert str(caught.value) == (
        "node 0 is short of 4 hugepages of 2M: 10 needed, 10 to be added to a pool of 5 with 0 free,"
        " there is memory for 6; other processes: postgres (pid 7) 2, dpdk app (pid 8) 1;"
        " 2 are in files that no process has mapped\n"
        "  hint: free memory on node 0, where 12M are free, stop a guest there, or reserve at boot, on the kernel"
        " command line: hugepagesz=2M hugepages=0:15,1:3"
    )
    assert pools.written == []


def test_a_guest_that_fills_its_memory_at_that_very_moment(
    root: str, pools: Pools, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at the pool another QEMU faults its pages: they are not had twice, and none is left behind."""
    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("active", "")})
    claims.write(root, claim("db", ["2"], page_size=PAGE, pages={0: 10}, nodes="0"))
    pools.create(0, 10, room=40)
    trees.write(root, "/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@db.service/cgroup.procs", "7")
    has, look = 0, numa_maps.pages

    def fill(root: str, pid: int, node: int, page_size: int) -> int:
        nonlocal has
        if has < 10:
            has += 2
            pools.use(0, 2)
            trees.write(root, "/proc/7/numa_maps", f"7f0 bind:0 huge N0={has} kernelpagesize_kB=2048")
        return look(root, pid, node, page_size)

    monkeypatch.setattr(numa_maps, "pages", fill)
    trees.write(root, "/etc/kvmsup/web.toml", WEB.replace('"dedicated"', '"dedicated"\nnodes = "0"'))
    load(root, monkeypatch)
    setup.run("web", root)
    assert (pools.total(0), claims.read_all(root)["web"].grown) == (20, {0: 10})
    has = 4
    pools.create(0, 20, used=4, room=40)
    assert release.run("web", root) == []
    assert pools.total(0) == 10


def test_a_shortfall_beside_others(root: str, fake_systemctl: Systemctl) -> None:
    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("active", "")})
    claims.write(root, claim("db", ["2"], page_size=PAGE, pages={0: 3}))
    with pytest.raises(Refusal, match=r"^node 0 is short of \d+ hugepages of 2M: .* came; guests hold there: db 3\n"):
        setup.run("web", root)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("/etc/kvmsup/web.toml", f"{WEB}lock = true", "/etc/kvmsup/web.toml was edited since systemd loaded it"),
        ("/etc/kvmsup.toml", "[ksm]\npolicy = 'never'", "/etc/kvmsup.toml was edited since systemd loaded it"),
    ],
)
def test_edited_since_loaded(root: str, path: str, text: str, said: str, pools: Pools) -> None:
    trees.write(root, path, text)
    with pytest.raises(HostError) as caught:
        setup.run("web", root)
    assert str(caught.value) == f"{said}\n  hint: systemctl daemon-reload"
    assert (claims.read_all(root), pools.written) == ({}, [])


def test_never_loaded(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(agreed.LOADED)
    with pytest.raises(HostError) as caught:
        setup.run("web", root)
    assert str(caught.value) == "systemd has not loaded /etc/kvmsup/web.toml yet\n  hint: systemctl daemon-reload"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wbe", "did you mean kvm@web?"),
        ("zzz", "kvmsup.guest(5) describes the file"),
        ("../x", "kvmsup.guest(5) describes the file"),
    ],
)
def test_no_such_guest(root: str, name: str, hint: str) -> None:
    with pytest.raises(HostError) as caught:
        setup.run(name, root)
    assert str(caught.value) == f"there is no guest {name}: no /etc/kvmsup/{name}.toml\n  hint: {hint}"


def test_a_link_that_leads_nowhere_is_not_taken_for_another_guest(root: str) -> None:
    Path(f"{root}/etc/kvmsup/gone.toml").symlink_to("nowhere")
    with pytest.raises(HostError) as caught:
        setup.run("gone", root)
    assert caught.value.hint == "kvmsup.guest(5) describes the file"


def test_taken_by_one_that_stays(root: str, fake_systemctl: Systemctl) -> None:
    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("active", "")})
    claims.write(root, claim("db", ["1", "5", "2", "3", "6", "7"]))
    with pytest.raises(KvmsupError) as caught:
        setup.run("web", root)
    assert str(caught.value).splitlines()[0] == (
        "2 dedicated CPUs on one node: there is room for 0 on node 0, 0 on node 1;"
        " CPU 1-3,5-7 are dedicated to guest db"
    )
    assert list(claims.read_all(root)) == ["db"]


def test_the_refusal_stands_while_systemd_cannot_be_asked(
    root: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 50 guests starting at once systemctl timed out, and that was all that the user was told."""

    def busy(_: object) -> None:
        raise HostError("systemctl show: Connection timed out")

    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("active", "")})
    claims.write(root, claim("db", ["1", "5", "2", "3", "6", "7"]))
    Path(f"{root}/run/systemd/units").mkdir(parents=True)
    os.symlink("x", f"{root}/run/systemd/units/invocation:kvm-setup@db.service")
    monkeypatch.setattr(systemctl, "units", busy)
    with pytest.raises(KvmsupError, match="CPU 1-3,5-7 are dedicated to guest db"):
        setup.run("web", root)


def test_waits_for_one_that_leaves(
    root: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("deactivating", "stop")})
    claims.write(root, claim("db", ["1", "5", "2", "3", "6", "7"]))
    monkeypatch.setattr(setup.time, "sleep", lambda _: claims.remove(root, "db"))  # type: ignore[attr-defined]
    setup.run("web", root)
    assert list(claims.read_all(root)) == ["web"]
    assert capsys.readouterr().err.startswith("waiting for db to stop: 2 dedicated CPUs on one node: ")


def test_two_that_start_at_once_do_not_take_each_others_pages(
    root: str, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first falls short; before it is released the second comes, and in the end the pool is as it was."""
    pools.create(0, 3, room=8)
    with pytest.raises(Refusal):
        setup.run("web", root)
    trees.write(root, "/etc/kvmsup/small.toml", WEB.replace("20M", "10M").replace("vcpus = 2", "vcpus = 1"))
    content = Path(f"{root}/etc/kvmsup/small.toml").read_bytes()
    monkeypatch.setenv(agreed.LOADED, agreed.fingerprint(content, b""))
    setup.run("small", root)
    assert claims.read_all(root)["small"].grown == {0: 2}
    assert release.run("web", root) == []
    assert pools.total(0) == 5
    assert release.run("small", root) == []
    assert pools.total(0) == 3


@pytest.mark.parametrize(
    ("path", "mode", "said"),
    [
        ("/boot/vmlinuz", None, "machine.kernel: /boot/vmlinuz: No such file or directory"),
        ("/boot/vmlinuz", 0o600, "machine.kernel: /boot/vmlinuz cannot be read by the guest's own user"),
        ("/home/x/vmlinuz", 0o644, "machine.kernel: /home/x/vmlinuz is hidden from the guest's sandbox"),
    ],
)
def test_kernel(root: str, path: str, mode: int | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.write(root, "/etc/kvmsup/web.toml", f'[machine]\nkernel = "{path}"\n[memory]\nsize = "1M"\n')
    load(root, monkeypatch)
    if mode is not None:
        trees.write(root, path, "")
        os.chmod(root + path, mode)
    with pytest.raises(HostError) as caught:
        setup.run("web", root)
    assert str(caught.value).splitlines()[0] == said


def test_no_kvm(root: str) -> None:
    os.unlink(f"{root}/dev/kvm")
    with pytest.raises(
        HostError, match=r"^this CPU shows neither VT-x nor SVM, so no guest can run with accel = kvm\n"
    ):
        setup.run("web", root)


def test_main_tells(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main("zzz", root) == 1
    assert capsys.readouterr().err.splitlines()[0] == "there is no guest zzz: no /etc/kvmsup/zzz.toml"
    assert setup.main("web", root) == 0
    assert release.main("web", root) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("held", "offline", "there"),
    [
        (claim("web", ["1", "5"], emulator="0,4"), "", True),
        (claim("web", ["1", "5"], emulator="0,4"), "5", False),
        (claim("web", ["1", "5"], emulator="0,4"), "4", False),  # attach would read back less than the claim
        (claim("web", ["1"], idle="5"), "5", False),
        (claim("web", ["0-5"], dedicated=False, emulator="0,4"), "1,4", True),
        (claim("web", ["1"], dedicated=False), "1", False),
    ],
)
def test_a_claim_is_kept_while_its_cpus_are_there(held: Claim, offline: str, there: bool) -> None:
    host = topology(2, 2, 2, offline=cpulist.parse(offline))
    plain = config.read_guest("web", "web.toml", b'[memory]\nsize = "64M"\n').guest
    asked = Request(plain, config.read_host("host.toml", b""), host, "")
    assert setup._there("/nowhere", held, asked, []) is there


def test_a_restart_tops_up_what_somebody_has_taken_out(root: str, pools: Pools) -> None:
    setup.run("web", root)
    pools._resize(0, 5)
    setup.run("web", root)
    assert pools.total(0) == 10
    assert release.run("web", root) == []
    assert (claims.read_all(root), pools.total(0)) == ({}, 0)


def test_a_claim_from_before_pages_had_cpus_is_made_anew(root: str) -> None:
    setup.run("web", root)
    held = claims.read_all(root)["web"]
    claims.write(root, held._replace(fill=()))
    setup.run("web", root)
    assert claims.read_all(root)["web"] == held


def test_pages_that_somebody_has_mapped_and_not_touched_are_not_free(root: str, pools: Pools) -> None:
    pools.create(0, 12, room=30)
    trees.write(root, "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "12")
    setup.run("web", root)
    # 3 of them may come from node 1.
    assert (claims.read_all(root)["web"].grown, pools.total(0)) == ({0: 7}, 19)
    assert release.run("web", root) == []
    assert pools.total(0) == 12


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("step", ["", "setup.fence", "release.fence"])
def test_overcommitted_pages_are_so_again(
    root: str, pools: Pools, ended: bool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has 4 pages beyond a pool of none; growing makes them the pool's own."""
    pools.create(0, 4, used=4, surplus=4, room=30)
    if step == "setup.fence":
        monkeypatch.setenv("KVMSUP_FAULT", f"{step}:error")
        with pytest.raises(HostError):
            setup.run("web", root)
        monkeypatch.delenv("KVMSUP_FAULT")
    else:
        setup.run("web", root)
    assert hugepages.pool(root, 0, PAGE) == hugepages.Pool(14, 10, 0)
    if ended:
        pools.use(0, -4)
    if step == "release.fence":
        monkeypatch.setenv("KVMSUP_FAULT", f"{step}:error")
        with pytest.raises(HostError):
            release.run("web", root)
        monkeypatch.delenv("KVMSUP_FAULT")
    assert release.run("web", root) == []
    assert hugepages.pool(root, 0, PAGE) == (hugepages.Pool(0, 0, 0) if ended else hugepages.Pool(4, 0, 4))


def test_overcommitted_pages_stay_where_giving_them_back_would_take_promised_ones(root: str, pools: Pools) -> None:
    pools.create(0, 4, used=4, surplus=4, room=30)
    setup.run("web", root)
    other = claim("db", ["2"], page_size=PAGE, pages={0: 3})
    claims.write(root, other._replace(held=True))
    pools._resize(0, 17)
    assert release.run("web", root) == []
    assert hugepages.pool(root, 0, PAGE) == hugepages.Pool(7, 3, 0)


def test_the_disk_of_another_guest(root: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with its name, by whatever path; once that guest is gone, the disk is in the claim."""
    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("active", "")})
    trees.write(root, "/srv/root.img", "x" * 512)
    trees.write(root, "/etc/kvmsup/web.toml", f'{WEB}[disk.root]\npath = "/srv/root.img"\nformat = "raw"\n')
    load(root, monkeypatch)
    setup.run("web", root)
    held = claims.read_all(root)["web"].disks
    release.run("web", root)
    monkeypatch.setattr(setup, "PATIENCE_SECONDS", 0.0)
    claims.write(root, claim("db", ["2"])._replace(disks=(held[0]._replace(name="data"),)))
    with pytest.raises(Refusal) as caught:
        setup.run("web", root)
    assert str(caught.value) == (
        "disk.root: guest db has the same one as its disk.data\n  hint: stop that guest, or make it read-only in both"
    )
    assert "web" not in claims.read_all(root)
    claims.remove(root, "db")
    setup.run("web", root)
    assert claims.read_all(root)["web"].disks == held


def test_disks_that_would_spoil_each_other(
    root: str, fake_systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_systemctl({"kvm-setup@db.service": ("active", ""), "kvm@db.service": ("active", "")})
    monkeypatch.setattr(setup, "PATIENCE_SECONDS", 0.0)
    trees.write(root, "/srv/a.img", "")
    os.chmod(f"{root}/srv/a.img", 0o644)
    os.link(f"{root}/srv/a.img", f"{root}/srv/b.img")
    both = "".join(f'[disk.{name}]\npath = "/srv/{name}.img"\nformat = "raw"\n' for name in "ab")
    trees.write(root, "/etc/kvmsup/web.toml", WEB + both)
    load(root, monkeypatch)
    with pytest.raises(Refusal) as caught:
        setup.run("web", root)
    assert caught.value.what == "disk.b: disk.a is the same one"
    copy = '[disk.root]\npath = "root.img"\nformat = "raw"\nbase = "/srv/a.img"\n'
    trees.write(root, "/etc/kvmsup/web.toml", WEB + copy)
    load(root, monkeypatch)
    file = Held("data", identity.of(os.stat(f"{root}/srv/a.img")), write=True)
    claims.write(root, claim("db", ["2"])._replace(disks=(file,)))
    with pytest.raises(Refusal) as caught:
        setup.run("web", root)
    assert caught.value.what == "disk.root.base: guest db has the same one as its disk.data"
    claims.write(root, claim("db", ["2"])._replace(disks=(file._replace(write=False),)))
    setup.run("web", root)


def test_a_restart_looks_at_the_disks_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPUs stay what they are; of the guest's own images some have been made since."""
    trees.write(root, "/etc/kvmsup/web.toml", f'{WEB}[disk.root]\npath = "root.img"\nformat = "raw"\nsize = "1G"\n')
    load(root, monkeypatch)
    setup.run("web", root)
    first = claims.read_all(root)["web"]
    assert first.disks == ()
    trees.write(root, "/var/lib/kvmsup/web/root.img", "")
    setup.run("web", root)
    second = claims.read_all(root)["web"]
    assert [disk.name for disk in second.disks] == ["root"]
    assert second._replace(disks=()) == first
