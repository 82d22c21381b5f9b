# SPDX-License-Identifier: LGPL-2.1-or-later
"""What setup finds behind disks and firmware, and what it refuses: with real files and, for root, a block device."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kvmsup.effects import backing, firmware, handover, identity, iouring
from kvmsup.errors import HostError, Refusal
from kvmsup.model import claim as claim_text
from kvmsup.model import config, hostpaths
from kvmsup.model.claim import Backing, Held
from kvmsup.model.guest import Guest
from kvmsup.plan import disks as planned
from kvmsup.plan import paths, refusals
from kvmsup.plan.plugs import File, Plug
from kvmsup.plan.refusals import Taken
from tests.unit import real_qemu
from tests.unit.hosts import claim

HEAD = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "64M"\n'


def guest(text: str, name: str = "web", head: str = HEAD) -> Guest:
    return config.read_guest(name, f"{name}.toml", (head + text).encode()).guest


def disk(path: str, more: str = "", format: str = "raw") -> str:
    return f'[disk.root]\npath = "{path}"\nformat = "{format}"\n{more}\n'


def found(root: Path, text: str, *, early: bool = False) -> Backing:
    return backing.find(str(root), guest(text), lambda: early)


def refused(root: Path, text: str) -> str:
    with pytest.raises(HostError) as caught:
        found(root, text)
    return str(caught.value).replace(str(root), "")


def write(root: Path, path: str, content: bytes = b"x" * 512, mode: int = 0o600) -> Path:
    file = Path(f"{root}{path}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    return file


def test_one_file_by_many_names(tmp_path: Path) -> None:
    write(tmp_path, "/srv/a.img")
    os.symlink("a.img", tmp_path / "srv/b.img")
    os.link(tmp_path / "srv/a.img", tmp_path / "srv/c.img")
    write(tmp_path, "/srv/other.img")
    same = {found(tmp_path, disk(f"/srv/{name}.img")).disks for name in "abc"}
    assert len(same) == 1
    ((one,),) = same
    assert (one.name, one.write) == ("root", True) and one.identity.startswith("file:")
    assert found(tmp_path, disk("/srv/other.img", "read-only = true")).disks[0].write is False
    assert found(tmp_path, disk("/srv/other.img")).disks[0].identity != one.identity


def test_an_image_that_has_yet_to_be_made(tmp_path: Path) -> None:
    assert found(tmp_path, disk("root.img", 'size = "1G"')).disks == ()
    write(tmp_path, "/var/lib/kvmsup/web/root.img")
    (one,) = found(tmp_path, disk("root.img", 'size = "1G"')).disks
    # Where a link in the guest's own directory leads is not looked at: the guest's user can make one.
    (tmp_path / "var/lib/kvmsup/web/root.img").unlink()
    write(tmp_path, "/srv/victim.img")
    os.symlink("/srv/victim.img", tmp_path / "var/lib/kvmsup/web/root.img")
    assert found(tmp_path, disk("root.img", 'size = "1G"')).disks != found(tmp_path, disk("/srv/victim.img")).disks


def test_what_is_missing(tmp_path: Path) -> None:
    assert refused(tmp_path, disk("/srv/root.img")) == (
        "disk.root: /srv/root.img: No such file or directory\n"
        "  hint: nothing is made at an absolute path; an image with a relative one is"
    )
    # While the host boots, what it is on may not be mounted yet: attach looks again.
    assert found(tmp_path, disk("/srv/root.img"), early=True).disks == ()


def test_what_cannot_be_a_disk(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    os.mkfifo(tmp_path / "srv/fifo")
    assert refused(tmp_path, disk("/srv/fifo")) == "disk.root: /srv/fifo is neither a file nor a block device"
    assert refused(tmp_path, disk("/srv")) == "disk.root: /srv is neither a file nor a block device"
    write(tmp_path, "/dev/file")
    assert (
        refused(tmp_path, disk("/dev/file"))
        == "disk.root: /dev/file is a file, not a device\n  hint: move it out of /dev"
    )
    write(tmp_path, "/srv/x.qcow2")
    assert refused(tmp_path, disk("/srv/x.qcow2", format="qcow2")) == (
        'disk.root: /srv/x.qcow2 is no qcow2 image\n  hint: format = "raw", if it is a raw one'
    )


def test_a_base_that_the_guests_user_cannot_read(tmp_path: Path) -> None:
    text = disk("root.img", 'base = "/srv/base.img"')
    assert refused(tmp_path, text) == "disk.root.base: /srv/base.img: No such file or directory"
    write(tmp_path, "/srv/base.img")
    assert refused(tmp_path, text) == (
        "disk.root.base: /srv/base.img cannot be read by the guest's own user\n  hint: chmod o+r /srv/base.img"
    )
    (tmp_path / "srv/base.img").chmod(0o644)
    (tmp_path / "srv").chmod(0o700)
    assert refused(tmp_path, text) == (
        "disk.root.base: /srv/base.img cannot be reached by the guest's own user\n"
        "  hint: chmod o+x /srv, or move the file"
    )
    (tmp_path / "srv").chmod(0o755)
    assert found(tmp_path, text).disks == ()
    write(tmp_path, "/home/base.img", mode=0o644)
    assert refused(tmp_path, disk("root.img", 'base = "/home/base.img"')) == (
        "disk.root.base: /home/base.img is hidden from the guest's sandbox\n  hint: move it to /var/lib or /boot"
    )
    write(tmp_path, "/srv/base.img", bytes(2 << 20), 0o644)
    assert refused(tmp_path, disk("root.img", 'base = "/srv/base.img"\nsize = "1M"')) == (
        'disk.root: size = 1M is less than /srv/base.img has, 2M\n  hint: size = "2M" or more'
    )
    # Once the image is there, nobody needs the base.
    write(tmp_path, "/var/lib/kvmsup/web/root.img")
    assert len(found(tmp_path, disk("root.img", 'base = "/nowhere"')).disks) == 1


def test_a_base_behind_a_link_into_what_the_sandbox_hides(tmp_path: Path) -> None:
    """The file that is named is shown there, but not what a link leads to."""
    write(tmp_path, "/var/lib/base.img", mode=0o644)
    assert found(tmp_path, disk("root.img", 'base = "/var/lib/base.img"')).disks == ()
    write(tmp_path, "/home/base.img", mode=0o644)
    (tmp_path / "srv").mkdir(exist_ok=True)
    for target, hint in (("/var/lib/base.img", "name /var/lib/base.img itself"), ("/home/base.img", "move it to ")):
        (tmp_path / "srv/link.img").unlink(missing_ok=True)
        (tmp_path / "srv/link.img").symlink_to(f"..{target}")
        told = f"/srv/link.img leads to {target}, which is hidden from the guest's sandbox\n  hint: {hint}"
        assert refused(tmp_path, disk("root.img", 'base = "/srv/link.img"')).startswith(f"disk.root.base: {told}")


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_a_base_that_is_no_file(tmp_path: Path, kind: str) -> None:
    """A directory's size is the largest there is, and a copy of /dev/null would be a disk without room."""
    (tmp_path / "srv").mkdir()
    path = tmp_path / "srv/base"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path, 0o644)
    else:
        os.symlink("/dev/null", path)
    for size in ("", 'size = "1G"'):
        said = refused(tmp_path, disk("root.img", f'base = "/srv/base"\n{size}'))
        assert said == "disk.root.base: /srv/base is no file\n  hint: name a file"


def test_a_base_that_may_yet_be_mounted(tmp_path: Path) -> None:
    assert found(tmp_path, disk("root.img", 'base = "/srv/base.img"'), early=True).disks == ()
    write(tmp_path, "/srv/base.img")
    with pytest.raises(HostError, match=r"base\.img cannot be read by the guest's own user"):
        found(tmp_path, disk("root.img", 'base = "/srv/base.img"'), early=True)


def test_a_link_into_a_guests_own_directory(tmp_path: Path) -> None:
    """Today it leads to an image; tomorrow to what whoever took QEMU over wants root to open."""
    write(tmp_path, "/var/lib/private/kvmsup/db/root.img")
    (tmp_path / "srv").mkdir()
    os.symlink("../var/lib/private/kvmsup/db/root.img", tmp_path / "srv/a.img")
    assert refused(tmp_path, disk("/srv/a.img")) == (
        "disk.root: /srv/a.img leads to /var/lib/private/kvmsup/db/root.img, in a guest's own directory, where links "
        "may lead root anywhere\n  hint: move the image to a directory that no guest may write to"
    )


def test_guests_own_directories_are_those() -> None:
    assert {f"{paths.STATE}/", f"{paths.RUNTIME}/"} < set(hostpaths.GUESTS_OWN)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device of this machine."""
    file = write(tmp_path, "/loop.img", bytes(1 << 20))
    done = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no block device can be made here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device(loop: str, tmp_path: Path) -> None:
    (one,) = backing.find("", guest(disk(loop)), lambda: False).disks
    device = os.stat(loop).st_rdev
    file = identity.of(os.stat(tmp_path / "loop.img"))
    assert one == Held("root", f"block:{os.major(device)}:{os.minor(device)}", write=True, on=(file,))
    assert backing.look_late("", "disk.root", File(loop, True, 0, "raw")) == one
    os.symlink(loop, tmp_path / "link")
    with pytest.raises(HostError, match=r"link leads to a block device\n"):
        backing.find("", guest(disk(f"{tmp_path}/link")), lambda: False)
    # Somebody has it to himself, as a mount has.
    holder = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(HostError) as caught:
            backing.find("", guest(disk(loop)), lambda: False)
        assert len(backing.find("", guest(disk(loop, "read-only = true")), lambda: False).disks) == 1
        with pytest.raises(HostError, match="is in use by the host itself"):
            backing.look_late("", "disk.root", File(loop, True, 0, "raw"))
        # So is the file that it is made of.
        with pytest.raises(HostError) as of_file:
            backing.find("", guest(disk(f"{tmp_path}/loop.img")), lambda: False)
        assert str(of_file.value) == (
            f"disk.root: {tmp_path}/loop.img is in use by the host itself: mounted, or a part of something\n"
            f"  hint: lsblk {loop} shows by what"
        )
        with pytest.raises(HostError, match="in use by the host itself"):
            own = tmp_path / "var/lib/kvmsup/web/loop.img"
            own.parent.mkdir(parents=True)
            os.link(tmp_path / "loop.img", own)
            os.symlink("/sys", tmp_path / "sys")
            os.symlink("/dev", tmp_path / "dev")
            os.symlink("/tmp", tmp_path / "tmp")
            found(tmp_path, disk("loop.img"))
        assert len(backing.find("", guest(disk(f"{tmp_path}/loop.img", "read-only = true")), lambda: False).disks) == 1
    finally:
        os.close(holder)
    # A loop device that nobody uses harms nobody.
    assert len(backing.find("", guest(disk(f"{tmp_path}/loop.img")), lambda: False).disks) == 1
    assert str(caught.value) == (
        f"disk.root: {loop} is in use by the host itself: mounted, or a part of something\n"
        f"  hint: lsblk {loop} shows by what"
    )


def test_a_guest_boots_from_a_block_device(loop: str) -> None:
    from tests.unit.test_disks import start, words

    Path(loop).write_bytes(real_qemu.boot_sector("from a device\n"))
    asked = guest(disk(loop), head=HEAD)
    with real_qemu.running(*words(asked, "threads")) as running:
        os.symlink("/dev", f"{running.root}/dev")
        start(running, asked)
        assert running.printed("\n") == "from a device\n"


DATA = Held("data", "file:1:2:3", True)
HOLDER = claim("db")._replace(
    disks=(DATA, Held("cd", "file:1:2:4", False), Held("part", "block:8:17", True, ("block:8:16",)))
)


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (Held("root", "file:1:2:3", True), "disk.root: guest db has the same one as its disk.data"),
        (Held("root", "file:1:2:3", False), "disk.root: guest db has the same one as its disk.data"),
        (Held("root", "file:1:2:4", True), "disk.root: guest db has the same one as its disk.cd"),
        (Held("root", "file:1:2:4", False), ""),
        (Held("root", "file:9:2:3", True), ""),
        (Held("root", "block:7:0", True, ("file:1:2:3",)), "disk.root: guest db has what it lies on as its disk.data"),
        (Held("root", "block:7:0", False, ("file:1:2:4",)), ""),
        (Held("root", "block:8:16", False), "disk.root: guest db has a part of it as its disk.part"),
        # Two partitions of one disk have nothing of each other.
        (Held("root", "block:8:18", True, ("block:8:16",)), ""),
    ],
)
def test_a_disk_of_another_guest(mine: Held, said: str) -> None:
    refusals.check_disks("db", [mine], [HOLDER])
    try:
        refusals.check_disks("web", [mine], [HOLDER])
    except Taken as error:
        assert (error.what, error.holders) == (said, ("db",))
        assert error.hint == "stop that guest, or make it read-only in both"
    else:
        assert not said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (DATA._replace(name="b"), "disk.b: disk.data is the same one"),
        (DATA._replace(name="b", write=False), "disk.b: disk.data is the same one"),
        (Held("b", "block:7:0", True, (DATA.identity,)), "disk.b: disk.data is what it lies on"),
        (Held("b", "file:1:2:4", True), ""),
    ],
)
def test_two_disks_of_one_guest(other: Held, said: str) -> None:
    refusals.check_apart([DATA._replace(write=False), other._replace(write=False)])
    try:
        refusals.check_apart([DATA, other])
    except Refusal as error:
        assert str(error) == f"{said}\n  hint: each needs an image of its own"
    else:
        assert not said


def block(root: Path, number: str, place: str, **attributes: str) -> None:
    """A block device in sysfs; `place` is below /sys/devices."""
    write(root, f"/sys/devices/{place}/dev", f"{number}\n".encode())
    for name, value in attributes.items():
        write(root, f"/sys/devices/{place}/{name.replace('__', '/')}", f"{value}\n".encode())
    (root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
    os.symlink(f"../../devices/{place}", root / "sys/dev/block" / number)


def test_what_a_device_lies_on(tmp_path: Path) -> None:
    """A volume on an encrypted partition of a loop device, and a file that is whole."""
    file = identity.of(os.stat(write(tmp_path, "/srv/disk.img")))
    block(tmp_path, "7:0", "virtual/block/loop0", loop__backing_file="/srv/disk.img")
    block(tmp_path, "259:1", "virtual/block/loop0/loop0p1", partition="1")
    for number, name, slave in (("253:0", "dm-0", "loop0/loop0p1"), ("253:1", "dm-1", "dm-0")):
        block(tmp_path, number, f"virtual/block/{name}")
        (tmp_path / f"sys/devices/virtual/block/{name}/slaves").mkdir()
        os.symlink(f"../../{slave}", tmp_path / f"sys/devices/virtual/block/{name}/slaves/{slave.partition('/')[0]}")
    below = ("block:253:0", "block:259:1", "block:7:0", file)
    assert identity.beneath(str(tmp_path), "block:253:1") == below
    assert identity.beneath(str(tmp_path), "block:259:1") == below[2:]
    assert identity.beneath(str(tmp_path), file) == ()
    (tmp_path / "srv/disk.img").unlink()
    assert identity.beneath(str(tmp_path), "block:7:0") == ()
    assert identity.beneath(str(tmp_path), "block:99:9") == ()


def test_a_base_that_somebody_writes_to(tmp_path: Path) -> None:
    asked = guest(disk("root.img", 'base = "/srv/base.img"'))
    assert not [*backing.bases(str(tmp_path), asked)]
    base = identity.of(os.stat(write(tmp_path, "/srv/base.img")))
    assert [*backing.bases(str(tmp_path), asked)] == [Held("root.base", base, write=False)]
    with pytest.raises(Taken) as caught:
        writer = claim("db")._replace(disks=(Held("data", base, write=True),))
        refusals.check_disks("web", backing.bases(str(tmp_path), asked), [writer])
    assert caught.value.what == "disk.root.base: guest db has the same one as its disk.data"
    write(tmp_path, "/var/lib/kvmsup/web/root.img")
    assert not [*backing.bases(str(tmp_path), asked)]


def test_the_claim_comes_back() -> None:
    held = HOLDER._replace(aio="io_uring", firmware="/usr/share/OVMF/OVMF_CODE_4M.fd", nvram="/usr/share/v_4M.ms.fd")
    assert claim_text.parse(claim_text.render(held), "x") == held
    older = "\n".join(
        line for line in claim_text.render(held).splitlines() if "_DISKS" not in line and "_AIO" not in line
    )
    assert claim_text.parse(older, "x") == held._replace(disks=(), aio="")


def test_a_disk_that_was_replaced(tmp_path: Path) -> None:
    write(tmp_path, "/srv/root.img", real_qemu.boot_sector("x"))
    asked = guest(disk("/srv/root.img"))
    (plug,) = planned.plugs(asked)
    held = claim("web")._replace(disks=found(tmp_path, disk("/srv/root.img")).disks)
    write(tmp_path, "/srv/new.img", real_qemu.boot_sector("y"))
    os.rename(tmp_path / "srv/new.img", tmp_path / "srv/root.img")
    with real_qemu.running() as running, running.connected() as monitor:
        with pytest.raises(HostError) as caught:
            handover.plug(monitor, plug, str(tmp_path), held)
        assert monitor.execute("query-fdsets") == []
    assert caught.value.what == "disk.root: it was replaced since setup looked at it"
    assert isinstance(plug, Plug) and isinstance(plug.source, File)
    assert identity.of(os.stat(tmp_path / "srv/root.img")) != held.disks[0].identity


def descriptor(
    root: Path, name: str, *, directory: str = firmware.DIRECTORIES[1], changed: Mapping[str, object] | None = None
) -> None:
    """A firmware's descriptor, and the files it names."""
    stem = name.removesuffix(".json")
    for part in ("CODE", "VARS"):
        write(root, f"/usr/share/fw/{stem}_{part}.fd")
    text = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": f"/usr/share/fw/{stem}_CODE.fd", "format": "raw"},
            "nvram-template": {"filename": f"/usr/share/fw/{stem}_VARS.fd", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
        **(changed or {}),
    }
    write(root, f"{directory}/{name}", json.dumps(text).encode())


def test_firmware_in_the_order_of_the_descriptors(tmp_path: Path) -> None:
    descriptor(tmp_path, "60-b.json")
    descriptor(tmp_path, "50-a.json")
    assert firmware.find(str(tmp_path), "pc-q35-7.2") == ("/usr/share/fw/50-a_CODE.fd", "/usr/share/fw/50-a_VARS.fd")
    assert firmware.find(str(tmp_path), "q35").code == "/usr/share/fw/50-a_CODE.fd"
    write(tmp_path, f"{firmware.DIRECTORIES[0]}/50-a.json", b"")
    assert firmware.find(str(tmp_path), "pc").code == "/usr/share/fw/60-b_CODE.fd"
    descriptor(tmp_path, "10-mine.json", directory=firmware.DIRECTORIES[0])
    assert firmware.find(str(tmp_path), "pc").code == "/usr/share/fw/10-mine_CODE.fd"


UEFI = '[machine]\ntype = "pc-q35-7.2"\nfirmware = "uefi"\n[memory]\nsize = "64M"\n'
UNFIT = [
    {"features": ["requires-smm"]},
    {"features": ["secure-boot"]},
    {"features": ["enrolled-keys"]},
    {"interface-types": ["bios"]},
    {"targets": [{"architecture": "aarch64", "machines": ["pc-q35-*"]}]},
    {"targets": [{"architecture": "x86_64", "machines": ["microvm"]}]},
    {"targets": 3},
    {"mapping": {"device": "memory", "filename": "/x"}},
    {"mapping": []},
    {"mapping": {"device": "flash", "mode": "stateless", "executable": {"filename": "/x", "format": "raw"}}},
    {
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/usr/share/fw/50-a_CODE.fd", "format": "qcow2"},
            "nvram-template": {"filename": "/usr/share/fw/50-a_VARS.fd", "format": "raw"},
        }
    },
    {
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/usr/share/fw/a b_CODE.fd", "format": "raw"},
            "nvram-template": {"filename": "/usr/share/fw/50-a_VARS.fd", "format": "raw"},
        }
    },
    {"features": None},
]


@pytest.mark.parametrize("changed", UNFIT)
def test_firmware_that_does_not_suit(tmp_path: Path, changed: dict[str, object]) -> None:
    write(tmp_path, "/usr/share/fw/a b_CODE.fd")
    descriptor(tmp_path, "50-a.json", changed=changed)
    with pytest.raises(HostError) as caught:
        backing.find(str(tmp_path), guest("", head=UEFI), lambda: False)
    assert str(caught.value) == (
        'machine.firmware = "uefi": no UEFI firmware for pc-q35-7.2 in /usr/share/qemu/firmware\n'
        "  hint: apt install ovmf"
    )
    descriptor(tmp_path, "70-good.json")
    assert firmware.find(str(tmp_path), "pc-q35-7.2").code == "/usr/share/fw/70-good_CODE.fd"


@pytest.mark.parametrize("hidden", ["/var/lib/fw", "/home/me", "/usr/share/linked"])
def test_firmware_that_the_sandbox_hides(tmp_path: Path, hidden: str) -> None:
    """An administrator's own: the sandbox shows what a TOML names, and this is found."""
    files = [f"{hidden}/{name}" for name in ("CODE.fd", "VARS.fd")]
    write(tmp_path, "/var/lib/elsewhere/x")
    (tmp_path / "usr/share").mkdir(parents=True)
    (tmp_path / "usr/share/linked").symlink_to("../../var/lib/elsewhere")
    for file in files:
        write(tmp_path, file)
    code, nvram = ({"filename": file, "format": "raw"} for file in files)
    mapping = {"device": "flash", "executable": code, "nvram-template": nvram}
    descriptor(tmp_path, "10-mine.json", directory=firmware.DIRECTORIES[0], changed={"mapping": mapping})
    with pytest.raises(HostError) as caught:
        firmware.find(str(tmp_path), "q35")
    assert caught.value.what == f"machine.firmware: {files[0]} is hidden from the guest's sandbox"
    assert (
        list(backing.problems(str(tmp_path), guest("", head=UEFI)))[-1].what
        == f"{files[0]} is hidden from the guest's sandbox"
    )


def test_firmware_whose_files_are_gone(tmp_path: Path) -> None:
    descriptor(tmp_path, "50-a.json")
    (tmp_path / "usr/share/fw/50-a_VARS.fd").unlink()
    with pytest.raises(HostError):
        firmware.find(str(tmp_path), "pc-q35-7.2")


@pytest.mark.parametrize("content", [b"", b"{", b"7", b"[" * 100_000, b"\xff"])
def test_what_is_no_descriptor(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, f"{firmware.DIRECTORIES[1]}/1.json", content)
    with pytest.raises(HostError):
        firmware.find(str(tmp_path), "q35")


@pytest.mark.parametrize(
    ("switch", "kernel", "linked", "expected"),
    [
        ("0", (6, 12), b"\0liburing.so.2\0", "io_uring"),
        ("1", (6, 12), b"\0liburing.so.2\0", "threads"),
        ("2", (6, 12), b"\0liburing.so.2\0", "threads"),
        (None, (6, 1), b"\0liburing.so.2\0", "io_uring"),
        (None, (5, 10), b"\0liburing.so.2\0", "threads"),
        ("0", (6, 12), b"\0libaio.so.1\0", "threads"),
        ("0", (6, 12), None, "threads"),
    ],
)
def test_asynchronous_io(
    tmp_path: Path, switch: str | None, kernel: tuple[int, ...], linked: bytes | None, expected: str
) -> None:
    if switch:
        write(tmp_path, "/proc/sys/kernel/io_uring_disabled", f"{switch}\n".encode())
    if linked:
        write(tmp_path, "/usr/bin/qemu", bytes(1 << 20) + linked)
    assert iouring.choose(str(tmp_path), "/usr/bin/qemu", kernel) == expected


def test_this_machines_qemu_is_linked_as_it_says() -> None:
    """The same as QEMU's own schema has it."""
    program = real_qemu.installed()
    with real_qemu.running() as running, running.connected() as monitor:
        schema = monitor.execute("query-qmp-schema")
    offered = any("io_uring" in entry.get("values", ()) for entry in schema)
    assert iouring._is_linked(program) == offered


def test_check_tells_it_beforehand(tmp_path: Path) -> None:
    write(tmp_path, "/var/lib/kvmsup/web/root.img", bytes(4 << 20))
    text = HEAD.replace("[memory]", 'firmware = "uefi"\n[memory]')
    asked = guest(
        disk("root.img", 'size = "8M"') + '[disk.b]\npath = "b"\nformat = "raw"\nbase = "/b"\n'
        '[disk.c]\npath = "/c"\nformat = "raw"\n',
        head=text,
    )
    found = list(backing.problems(str(tmp_path), asked))
    assert [(".".join(map(str, one.path)), one.what) for one in found] == [
        ("disk.root.size", "root.img has 4M, and is left as it is"),
        ("disk.b.base", "/b: No such file or directory"),
        ("disk.c.path", "/c: No such file or directory"),
        ("machine.firmware", "no UEFI firmware for pc-q35-7.2 in /usr/share/qemu/firmware"),
    ]
    assert found[0].hint == ("with the guest stopped: qemu-img resize -f raw /var/lib/kvmsup/web/root.img 8M")


def test_check_tells_of_one_file_by_two_names(tmp_path: Path) -> None:
    os.link(write(tmp_path, "/srv/a.img"), tmp_path / "srv/b.img")
    text = "".join(f'[disk.{name}]\npath = "/srv/{name}.img"\nformat = "raw"\n' for name in "ab")
    (found,) = backing.problems(str(tmp_path), guest(text))
    assert (found.path, found.what) == (("disk", "b", "path"), "disk.a is the same one")


def as_anybody(do: Callable[[], str]) -> str:
    """What `do` returns to a user without rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writer, do().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        return said.read()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_check_tells_others_nothing_that_is_not_so() -> None:
    """Who may not look says nothing: neither of a disk for root alone, nor of a base once there is an image."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        write(root, "/srv/secret.img")
        write(root, "/var/lib/kvmsup/web/root.img")
        (root / "var/lib/kvmsup/web").chmod(0o700)
        asked = guest(disk("root.img", 'base = "/gone"') + '[disk.b]\npath = "/srv/secret.img"\nformat = "raw"\n')
        assert not [*backing.problems(name, asked)]
        assert as_anybody(lambda: str([*backing.problems(name, asked)])) == "[]"
