# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup new: what is written is the guest that was asked for, and nothing is ever written over."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.cli import main
from kvmsup.effects import files, installed
from kvmsup.errors import ConfigError, HostError, KvmsupError
from kvmsup.model import config
from kvmsup.plan import newguest
from kvmsup.plan.newguest import Asked, Image

G = 1 << 30
HOSTILE = st.text(st.characters(codec="utf-8"), max_size=20) | st.text(
    st.sampled_from("\\\"'$%{}[];#= \nx0u41é\x7f\x1b"), max_size=20
)
PATHS = HOSTILE.map(lambda text: f"/{text}")
IMAGES = st.builds(Image, PATHS, st.sampled_from(["raw", "qcow2"]), st.just(G))
ASKED = st.builds(
    Asked,
    st.from_regex(r"[a-z][a-z0-9-]{0,26}", fullmatch=True),
    st.sampled_from(["pc-q35-7.2", "pc-q35-10.0"]),
    st.integers(1, 64),
    st.integers(1, 4096).map(lambda count: count << 20),
    description=HOSTILE,
    uefi=st.booleans(),
    dedicated=st.booleans(),
    hugepages=st.sampled_from(["", "2M", "1G"]),
    image=st.none() | IMAGES,
    cdrom=st.just("") | PATHS,
    disk=st.integers(0, 64).map(lambda count: count * G),
    bridge=st.just("br0") | HOSTILE,
    user_net=st.booleans(),
    user_data=st.just("") | PATHS,
)


def expected(asked: Asked) -> dict[str, Any]:
    """The file's keys for what is asked, said once more and in another way."""
    found: dict[str, Any] = {"machine": {"type": asked.machine}, "cpu": {"vcpus": asked.vcpus}}
    if asked.description:
        found["description"] = asked.description
    if asked.uefi:
        found["machine"]["firmware"] = "uefi"
    if asked.dedicated:
        found["placement"] = {"cpus": "dedicated"}
    found["memory"] = {"size": asked.memory}
    if asked.hugepages:
        found["memory"]["hugepages"] = asked.hugepages
    disks: dict[str, Any] = {}
    if asked.image:
        disks["root"] = {
            "path": f"root.{asked.image.format}", "format": asked.image.format, "base": asked.image.path
        }  # fmt: skip
    elif asked.disk:
        disks["root"] = {"path": "root.qcow2", "format": "qcow2"}
    if asked.disk:
        disks["root"]["size"] = f"{asked.disk // G}G"
    if asked.cdrom:
        disks["cd"] = {"path": asked.cdrom, "format": "raw", "bus": "cdrom", "read-only": True}
    nets: dict[str, Any] = {"lan": {"bridge": asked.bridge}} if asked.bridge else {}
    nets |= {"nat": {"user": True}} if asked.user_net else {}
    tables = {"disk": disks, "net": nets, "cloud-init": {"user-data": asked.user_data} if asked.user_data else {}}
    return found | {name: table for name, table in tables.items() if table}


@given(ASKED)
def test_what_comes_out_is_what_was_asked(asked: Asked) -> None:
    text = newguest.render(asked)
    found = tomllib.loads(text)
    size = found["memory"]["size"]
    assert str(found["memory"]["size"]).endswith(("M", "G"))
    found["memory"]["size"] = int(size[:-1]) * {"M": 1 << 20, "G": G}[size[-1]]
    assert found == expected(asked)
    try:
        guest = config.read_guest(asked.name, "x.toml", text.encode()).guest
    except ConfigError as error:
        assert all(one.line for one in error.diagnostics)
        return
    assert (guest.name, guest.machine.type, guest.cpu.vcpus) == (asked.name, asked.machine, asked.vcpus)
    assert (guest.memory.size, guest.description) == (asked.memory, asked.description)
    assert guest.placement.dedicated == asked.dedicated
    assert guest.cloud_init == (None if not asked.user_data else (asked.user_data, "", ""))


def test_a_name_that_is_not_utf8_is_refused() -> None:
    asked = Asked("web", "pc-q35-7.2", 1, G, image=Image("/srv/\udcff", "raw", G))
    with pytest.raises(KvmsupError, match="cannot be written as TOML"):
        newguest.render(asked)


@given(HOSTILE.filter(str.isprintable), st.lists(HOSTILE.filter(str.isprintable), max_size=3))
def test_user_data_holds_its_values_whole(hostname: str, keys: list[str]) -> None:
    lines = newguest.user_data(hostname, keys).splitlines()
    assert lines[0] == "#cloud-config"
    assert [json.loads(line[4:]) for line in lines if line.startswith("  - ")] == keys
    named = [json.loads(line.partition(": ")[2]) for line in lines if line.startswith("hostname: ")]
    assert named == ([hostname.partition(".")[0]] if hostname else [])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "is a private key"),
        ("", "has no public key"),
        ("# only a comment\n", "has no public key"),
        ("ssh-ed25519\n", "has no public key"),
        ("ssh-ed25519 AAAA me\nrubbish\n", "has no public key"),
        ("ssh-ed25519 AAAA \x1b[31m\n", "has no public key"),
    ],
)
def test_no_public_key(text: str, what: str) -> None:
    with pytest.raises(KvmsupError, match=what):
        newguest.public_keys("/k", text)


def test_public_keys() -> None:
    text = "# mine\nssh-ed25519 AAAA/+b== me@host\n\nsk-ssh-ed25519@openssh.com AAAA\n ecdsa-sha2-nistp256 AAA= a b \n"
    assert newguest.public_keys("/k", text) == [
        "ssh-ed25519 AAAA/+b== me@host", "sk-ssh-ed25519@openssh.com AAAA", "ecdsa-sha2-nistp256 AAA= a b"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", "a b", "ä", "x" * 64, "a\n", ".".join(["x" * 60] * 5)])
def test_no_host_name(name: str) -> None:
    with pytest.raises(KvmsupError, match="no host name"):
        newguest.check_hostname(name)


@pytest.mark.parametrize("name", ["a", "web-1", "web.example.org", "x" * 63, "1"])
def test_host_name(name: str) -> None:
    newguest.check_hostname(name)


qemu = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-system-x86_64")), reason="QEMU is not installed"
)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "an image.qcow2"
    os.system(f"qemu-img create -q -f qcow2 '{path}' 3G")
    return str(path)


@qemu
def test_files_are_written_once(etc: Path, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "id.pub"
    key.write_text("ssh-ed25519 AAAA me\n")
    arguments = ["new", "web", "--image", image, "--user-net", "--ssh-key", str(key), "--hostname", "www.example.org"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{etc}/web.toml is written\n{etc}/web.user-data is written")
    assert "next: systemctl start kvm@web\n" in out
    assert "web.toml" not in err or "warning" in err or "note" in err
    toml = tomllib.loads((etc / "web.toml").read_text())
    assert toml["disk"]["root"] == {"path": "root.qcow2", "format": "qcow2", "base": image}
    assert toml["machine"]["type"] == installed.newest_machine()
    assert toml["cloud-init"] == {"user-data": f"{etc}/web.user-data"}
    assert (etc / "web.user-data").read_text() == (
        '#cloud-config\nhostname: "www"\nfqdn: "www.example.org"\nssh_authorized_keys:\n  - "ssh-ed25519 AAAA me"\n'
    )
    assert (etc / "web.user-data").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(etc)) == ["web.toml", "web.user-data"]
    before = (etc / "web.toml").read_bytes()
    assert main(arguments) == 1
    assert f"kvmsup: {etc}/web.toml is there already\n" in capsys.readouterr().err
    (etc / "web.toml").unlink()
    assert main(arguments) == 1
    assert f"kvmsup: {etc}/web.user-data is there already\n" in capsys.readouterr().err
    assert before and os.listdir(etc) == ["web.user-data"]


@qemu
def test_print_writes_nothing(etc: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "web", "--image", image, "--print", "--hostname", "h", "--machine", "pc-q35-7.2"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["machine"] == {"type": "pc-q35-7.2"}
    assert main(["new", "web", "--image", image, "--print", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] is False and report["user_data"] is None
    assert tomllib.loads(report["toml"])["cpu"] == {"vcpus": 2}
    assert os.listdir(etc) == []


@qemu
def test_json_of_what_was_written(etc: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "web", "--image", image, "--bridge", "br0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["file"], report["written"]) == ("web", f"{etc}/web.toml", True)
    assert report["toml"] == (etc / "web.toml").read_text()
    assert report["next"][0] == "systemctl start kvm@web"


@qemu
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["Web", "--image", "IMAGE"], "'Web' cannot name a guest"),
        (["web"], "there is nothing to boot from"),
        (["web", "--image", "nowhere"], "No such file or directory"),
        (["web", "--image", "IMAGE", "--disk", "1G"], "--disk 1G is less than the image's 3G"),
        (["web", "--image", "IMAGE", "--memory", "3G", "--hugepages", "2M", "--vcpus", "0"], "0 is out of range"),
        (["web", "--image", "IMAGE", "--memory", "1025M", "--hugepages", "2M"], "not a multiple of the hugepage size"),
        (["web", "--image", "IMAGE", "--bridge", "a/b"], "nothing is written, as the file would have mistakes"),
        (["web", "--image", "IMAGE", "--hostname", "a b"], "--hostname a b: no host name"),
        (["web", "--image", "IMAGE", "--hostname", "h", "--user-data", "x"], "--user-data says everything itself"),
        (["web", "--image", "IMAGE", "--ssh-key", "/nowhere"], "--ssh-key /nowhere: No such file or directory"),
    ],
)
def test_refused(etc: Path, image: str, arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", *(image if one == "IMAGE" else one for one in arguments)]) == 1
    said = capsys.readouterr().err
    assert what in said
    assert "hint: " in said or "No such file" in said
    assert os.listdir(etc) == []


@qemu
@pytest.mark.parametrize(
    ("made", "what"),
    [
        ("qemu-img create -q -f vmdk x 1M", "is of the format vmdk; guests have raw and qcow2"),
        (
            "qemu-img create -q -f qcow2 below 1M; qemu-img create -q -f qcow2 -b below -F qcow2 x",
            "x has a backing file, and what an image names is not opened",
        ),
        (
            "qemu-img create -q -f qcow2 -o data_file=data x 1M; rm data",
            "x keeps its data in another file, and what an image names is not opened",
        ),
    ],
)
def test_image_that_no_guest_can_have(
    etc: Path, tmp_path: Path, made: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert os.system(f"cd {tmp_path}; {made}") == 0
    assert main(["new", "web", "--image", str(tmp_path / "x")]) == 1
    said = capsys.readouterr().err
    assert what in said
    assert "hint: qemu-img convert -O qcow2" in said
    assert os.listdir(etc) == []


@pytest.mark.parametrize(
    "content",
    [
        b"KDMV\1\0",
        b"COWD\1\0",
        b'# Disk DescriptorFile\nversion=1\n# Extent description\nRW 2048 FLAT "fifo" 0\n',
        b"# Disk DescriptorFile\r\n  \r\n#\r\nversion=3\r\n",
        b"version=2\n",
        b"#\rx\nversion=1\n",
        b"#" * 600 + b"\nversion=1\n",
    ],
)
def test_a_vmdk_is_refused_before_any_program_opens_what_it_names(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_said", lambda *_: pytest.fail("qemu-img was asked"))
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(HostError) as caught:
        installed.image(str(path))
    assert caught.value.what == f"--image {path} is of the format vmdk; guests have raw and qcow2"
    assert caught.value.hint.startswith(f"qemu-img convert -O qcow2 {path} NEW.qcow2, only if you trust who made it")


@pytest.mark.parametrize(
    "content", [b"", b"\xeb\x63\x90", b"#!/bin/sh\nversion\n", b"\0" * 5000 + b"version=1", b"vers"]
)
def test_other_images_are_qemus_to_tell(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_said", lambda *_: '{"format": "raw", "virtual-size": 5}')
    path = tmp_path / "x"
    path.write_bytes(content)
    assert installed.image(str(path)) == Image(str(path), "raw", 5)


@qemu
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_an_image_that_is_no_file(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    {"directory": os.mkdir, "fifo": os.mkfifo}[kind](tmp_path / "x")
    assert main(["new", "web", "--image", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err == f"kvmsup: --image {tmp_path}/x is neither a file nor a block device\n"


def test_keys_that_would_be_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that has lost its end looks like one."""
    key = tmp_path / "authorized_keys"
    key.write_text(("ssh-rsa " + "A" * 700 + " me\n") * 200)
    assert main(["new", "web", "--image", "x", "--ssh-key", str(key)]) == 1
    assert capsys.readouterr().err == f"kvmsup: --ssh-key {key} has over 64 KiB\n  hint: name a file of a few keys\n"


def test_a_key_of_somebody_with_a_smile() -> None:
    """PyYAML makes two halves of a character from two escapes, and cloud-init then fails to write them."""
    text = newguest.user_data("", ["ssh-ed25519 AAAA me\U0001f600"])
    assert text == '#cloud-config\nssh_authorized_keys:\n  - "ssh-ed25519 AAAA me\U0001f600"\n'


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.create(str(path), "one", 0o640)
    with pytest.raises(HostError, match="is there already"):
        files.create(str(path), "two", 0o640)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="is there already"):
        files.create(str(path), "three", 0o640)
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(HostError, match="cannot write: No such file"):
        files.create(str(tmp_path / "no/x"), "", 0o600)
