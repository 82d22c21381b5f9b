# SPDX-License-Identifier: LGPL-2.1-or-later
"""create: images are whole or not there, and what is there is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsup.effects import cloning, files, notify
from kvmsup.entry import create
from kvmsup.errors import HostError
from kvmsup.plan import images
from kvmsup.plan.images import Image
from tests.unit import real_qemu

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def made(directory: Path, *wanted: Image, template: str = "") -> None:
    create.run(environment(directory, *wanted, template=template))


def environment(directory: Path, *wanted: Image, template: str = "") -> dict[str, str]:
    found = {"STATE_DIRECTORY": str(directory), images.VARIABLE: images.render(wanted)}
    return found | ({"KVMSUP_NVRAM_TEMPLATE": template} if template else {})


def image(file: str = "root.img", format: str = "raw", size: int = 0, base: str = "", of_base: str = "") -> Image:
    return Image("disk.root", file, format, size, base, of_base or format)


def info(path: Path) -> dict[str, object]:
    done = subprocess.run(
        [real_qemu.installed("qemu-img"), "info", "--output=json", str(path)],
        capture_output=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def content(path: Path, format: str) -> bytes:
    """What a guest would read from an image."""
    raw = path.with_name("content.raw")
    program = real_qemu.installed("qemu-img")
    subprocess.run([program, "convert", "-f", format, "-O", "raw", str(path), str(raw)], check=True)
    found = raw.read_bytes()
    raw.unlink()
    return found


def base(directory: Path, format: str = "raw", size: int = 2 * MIB) -> Path:
    """An image with something in it, outside of the guest's own directory."""
    raw = directory.parent / "base.raw"
    raw.write_bytes((b"kvmsup" * (size // 12)).ljust(size, b"\0"))
    if format == "raw":
        return raw
    path = raw.with_suffix(".qcow2")
    subprocess.run([real_qemu.installed("qemu-img"), "convert", "-O", format, str(raw), str(path)], check=True)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The guest's own directory."""
    directory = tmp_path / "web"
    directory.mkdir(mode=0o700)
    return directory


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_empty_image(own: Path, format: str) -> None:
    made(own, image(format=format, size=64 * MIB))
    (path,) = own.iterdir()
    found = info(path)
    assert (found["virtual-size"], found["format"], path.stat().st_mode & 0o777) == (64 * MIB, format, 0o600)
    assert path.stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("of_base", ["raw", "qcow2"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("size", [0, 2 * MIB, 5 * MIB])
def test_a_copy_of_a_base(own: Path, format: str, of_base: str, size: int) -> None:
    source = base(own, of_base)
    before = content(source, of_base)
    made(own, image(format=format, size=size, base=str(source), of_base=of_base))
    (path,) = own.iterdir()
    assert content(path, format) == before.ljust(size, b"\0")
    found = info(path)
    assert found["format"] == format and "backing-filename" not in found
    assert path.stat().st_mode & 0o777 == 0o600
    assert content(source, of_base) == before


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_is_there_is_left_alone(own: Path, format: str, capfd: pytest.CaptureFixture[str]) -> None:
    made(own, image(format=format, size=4 * MIB))
    before = (own / "root.img").read_bytes()
    capfd.readouterr()
    made(own, image(format=format, size=4 * MIB))
    assert capfd.readouterr().err == ""
    made(own, image(format=format, size=8 * MIB, base=str(base(own))))
    assert capfd.readouterr().err == "<4>disk.root: root.img has 4M and not 8M: it is left as it is\n"
    assert (own / "root.img").read_bytes() == before


def refused(own: Path, one: Image) -> str:
    before = sorted(own.iterdir())
    with pytest.raises(HostError) as caught:
        made(own, one)
    assert sorted(own.iterdir()) == before
    return str(caught.value)


def test_a_base_that_does_not_fit(own: Path) -> None:
    source = base(own)
    assert refused(own, image(size=MIB, base=str(source))) == (
        f'disk.root: size = 1M is less than {source} has, 2M\n  hint: size = "2M" or more'
    )


def test_a_base_that_is_not_there(own: Path) -> None:
    assert refused(own, image(base="/nowhere/x")) == (
        "disk.root.base: /nowhere/x: cannot open: No such file or directory\n"
        "  hint: the guest's own user must be able to read it"
    )


def test_a_base_that_leads_elsewhere(own: Path) -> None:
    raw, path = base(own), own.parent / "leads.qcow2"
    program = real_qemu.installed("qemu-img")
    subprocess.run([program, "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", str(path)], check=True)
    said = refused(own, image(format="qcow2", base=str(path)))
    assert said.startswith(f"disk.root: {path} has a backing file, and what an image names is not opened\n")


def test_larger_than_an_image_can_be(own: Path) -> None:
    assert refused(own, image(format="qcow2", size=1 << 52)).startswith("disk.root: qemu-img: ")
    assert refused(own, image(size=1 << 52)) == f"disk.root: {own}/root.img: cannot be made: File too large"


def test_nothing_to_make_it_from(own: Path) -> None:
    assert refused(own, image()) == (
        f"disk.root: there is no root.img in {own}\n" '  hint: size = "20G" makes an empty one, base = "/…" a copy'
    )


def test_a_qcow2_that_is_none(own: Path) -> None:
    (own / "root.img").write_bytes(bytes(1024))
    assert refused(own, image(format="qcow2", size=MIB)) == (
        'disk.root: root.img is no qcow2 image\n  hint: format = "raw", if it is a raw one'
    )


def test_what_is_no_image_at_all(own: Path) -> None:
    (own / "root.img").mkdir()
    assert refused(own, image(size=MIB)) == "disk.root: root.img is neither a file nor a block device"
    os.rmdir(own / "root.img")
    assert refused(own, image(base=str(own.parent))) == f"disk.root: {own.parent} is neither a file nor a block device"
    assert refused(own, image(base="/dev/null")) == "disk.root: /dev/null is neither a file nor a block device"


def test_a_base_in_shared_memory(own: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"k" * MIB)
        file.flush()
        made(own, image(format="qcow2", base=file.name, of_base="raw"))
    assert content(own / "root.img", "qcow2") == b"k" * MIB


def test_without_qemu_img(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "QEMU_IMG", "/nowhere/qemu-img")
    assert refused(own, image(format="qcow2", size=MIB)) == (
        "disk.root: there is no /nowhere/qemu-img, which makes disk images\n  hint: apt install qemu-utils"
    )
    made(own, image(size=MIB))
    assert (own / "root.img").stat().st_size == MIB


def test_nvram(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "VARS.fd"
    template.write_bytes(b"as it comes")
    made(own, template=str(template))
    nvram = own / images.NVRAM
    assert (nvram.read_bytes(), nvram.stat().st_mode & 0o777) == (b"as it comes", 0o600)
    nvram.write_bytes(b"the guest's")
    made(own, template=str(template))
    assert capfd.readouterr().err == ""
    template.write_bytes(b"of another..")
    made(own, template=str(template))
    assert nvram.read_bytes() == b"the guest's"
    assert capfd.readouterr().err == (
        "<4>machine.firmware: nvram.fd has 11, and this firmware's has 12: it will not find its boot entries\n"
        f"<4>  hint: {nvram} is left as it is; without it a new one is made at the next start\n"
    )
    nvram.unlink()
    with pytest.raises(HostError, match=r"^machine.firmware: /nowhere: cannot read: No such file or directory$"):
        made(own, template="/nowhere")
    assert not [*own.iterdir()]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 1 MiB."""
    directory = tmp_path / "full"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "none", directory], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_no_room(full: Path, format: str) -> None:
    source = base(full, size=4 * MIB)
    said = refused(full, image(format=format, base=str(source), of_base="raw"))
    assert said.startswith("disk.root: qemu-img: ") and "No space left on device" in said
    assert said.endswith("\n  hint: df -h /var/lib/kvmsup shows how full it is")


def started(own: Path, *wanted: Image, **more: str) -> subprocess.Popen[bytes]:
    program = "from kvmsup.entry import create; import sys; sys.exit(create.main('web'))"
    command = [sys.executable, "-c", program]
    found = {**os.environ, **environment(own, *wanted), **more}
    return subprocess.Popen(command, cwd=ROOT, env=found, stderr=subprocess.PIPE, start_new_session=True)


def test_killed_in_the_middle(own: Path) -> None:
    """As by the out-of-memory killer: the next start sweeps up, and makes the whole of it."""
    source = base(own, size=256 * MIB)
    wanted = image(format="qcow2", base=str(source), of_base="raw")
    part = own / ".root.img.part"
    for _ in range(3):
        process = started(own, wanted)
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > MIB) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert [*own.iterdir()] == [part]
    process = started(own, wanted)
    assert process.communicate()[1].decode().splitlines()[-1] == f"<5>disk.root: made root.img from {source}"
    assert [path.name for path in own.iterdir()] == ["root.img"]
    assert content(own / "root.img", "qcow2") == source.read_bytes()


def test_what_was_left_at_an_image_of_another_name(own: Path) -> None:
    """The disk was renamed after a kill."""
    for name in (".old.qcow2.part", ".keep", "root.part"):
        (own / name).write_bytes(b"x")
    made(own, image(size=MIB))
    assert sorted(path.name for path in own.iterdir()) == [".keep", "root.img", "root.part"]
    (own / ".old.qcow2.part").mkdir()
    assert refused(own, image(size=MIB)) == f"{own}/.old.qcow2.part: cannot remove: Is a directory"


@pytest.mark.parametrize("name", ["create.sweep", "create.images", "create.nvram"])
def test_a_fault_at_each_step(own: Path, name: str) -> None:
    program = "from kvmsup.entry import create; import sys; sys.exit(create.main('web'))"
    found = {
        **os.environ,
        **environment(own, image(size=MIB), template="/proc/version"),
        "KVMSUP_FAULT": f"{name}:error",
    }
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=found, capture_output=True, check=False)
    assert done.returncode == 1
    assert f"<3>a fault was injected at the step {name} (KVMSUP_FAULT)\n" in done.stderr.decode()
    assert not [path for path in own.iterdir() if path.name.startswith(".")]


def test_a_name_that_was_taken_meanwhile(own: Path) -> None:
    with pytest.raises(HostError) as caught, cloning.making(str(own), "root.img") as part:
        Path(part).write_bytes(b"ours")
        (own / "root.img").write_bytes(b"theirs")
    assert caught.value.what == f"{own}/root.img: cannot be made: File exists"
    assert [(path.name, path.read_bytes()) for path in own.iterdir()] == [("root.img", b"theirs")]


def test_progress(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What qemu-img prints, in pieces of any size, becomes a line now and then, and a status each time."""
    told: list[str] = []
    monkeypatch.setattr(notify, "tell", lambda **states: told.append(str(states["STATUS"])))
    monkeypatch.setattr(cloning, "_STEP_SECONDS", 0.0)
    text = "".join(f"    ({number / 100:.2f}/100%)\r" for number in range(0, 10001, 50))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, text.encode())
    os.close(writer)
    monkeypatch.setattr(os, "read", lambda descriptor, _, read=os.read: read(descriptor, 37))
    try:
        cloning._follow(reader, "disk.root")
    finally:
        os.close(reader)
    lines = capfd.readouterr().err.splitlines()
    assert [int(line.split()[1]) // 10 for line in lines] == list(range(1, 11))
    assert told[-1] == "disk.root: 100 % copied" and len(told) > 50


@pytest.mark.parametrize("text", ["", "{", "[7]", '[["a"]]'])
def test_no_images(own: Path, text: str) -> None:
    with pytest.raises(HostError, match=r"^KVMSUP_IMAGES is not as the generator writes it: "):
        create.run({"STATE_DIRECTORY": str(own), images.VARIABLE: text})


def test_outside_of_its_unit() -> None:
    with pytest.raises(HostError, match=r"^create is run by kvm@.service, with StateDirectory=$"):
        create.run({})


def test_a_clone_is_immediate_where_blocks_can_be_shared(own: Path) -> None:
    source = base(own)
    descriptor = os.open(source, os.O_RDONLY)
    try:
        with cloning.making(str(own), "x") as part:
            shared = cloning.share(descriptor, part)
            if not shared:
                shutil.copy(source, part)
    finally:
        os.close(descriptor)
    if not shared:
        pytest.skip("this file system shares no blocks")
    assert (own / "x").read_bytes() == source.read_bytes()
    files.remove(str(own / "x"))
