# SPDX-License-Identifier: LGPL-2.1-or-later
"""Credentials and the cloud-init seed: what a TOML may say, what systemd and QEMU are told, and the seed itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.effects import seed, sources
from kvmsup.entry import create
from kvmsup.errors import ConfigError, HostError
from kvmsup.model import config
from kvmsup.model.firstboot import wrong_path
from kvmsup.model.guest import CloudInit, Credential, Guest
from kvmsup.plan import firstboot, paths
from tests.unit import real_qemu, systemd_syntax

BASE = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n'


def guest(text: str, name: str = "web") -> Guest:
    return config.read_guest(name, "web.toml", f"{BASE}{text}".encode()).guest


def said(text: str) -> str:
    with pytest.raises(ConfigError) as told:
        guest(text)
    return str(told.value)


def test_names_with_dots_are_written_either_way() -> None:
    plain = guest('[credentials]\nssh.authorized_keys.root = "/k"\nsystem.hostname = "/h"\n')
    quoted = guest('[credentials]\n"system.hostname" = "/h"\n"ssh.authorized_keys.root" = "/k"\n')
    assert plain.credentials == (Credential("ssh.authorized_keys.root", "/k"), Credential("system.hostname", "/h"))
    assert plain == quoted


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ('a = "/x"\n"a" = "/y"', "not TOML", ""),
        ('a.b = "/x"\n"a.b" = "/y"', "is there twice", "leave one of them out"),
        ('"a:b" = "/x"', "not a name for a credential", "letters, digits"),
        ('"../x" = "/x"', "not a name for a credential", "letters, digits"),
        ('".x" = "/x"', "not a name for a credential", "not in front"),
        ('"" = "/x"', "not a name for a credential", "letters, digits"),
        (f'{"x" * 29} = "/x"', "has 29 characters", "28 at the most"),
        ('passwd.plaintext-password.root = "/x"', "has 30 characters", "28 at the most"),
        ('kvmsup.x = "/x"', "kvmsup's own", "choose another"),
        ('vmm.notify_socket = "/x"', "given to the guest by kvmsup itself", "ready = true"),
        ("a = 5", "is the path of a file", '"a" = "/etc/…"'),
        ("a = {}", "is the path of a file", '"a" = "/etc/…"'),
        ('a = "x"', '"x" is not an absolute path', "start it with /"),
        (
            'a = "/var/lib/kvmsup/db/x"',
            "is in a guest's own directory, where links",
            "put it where only root can write",
        ),
        ('a = "/x/"', "names no file", "leave out"),
        ('a = "/x/../y"', "names no file", "leave out"),
        ('a = "/x//y"', "names no file", "leave out"),
        ('a = "/"', "names no file", "leave out"),
        ('a = "/x "', "has a space or a backslash", "move the file"),
        ('a = "/x y"', "has a space or a backslash", "move the file"),
        ("a = '/x\\y'", "has a space or a backslash", "move the file"),
        ('a = "/x\\ny"', "cannot be printed", "one line"),
        (f'a = "/{"x" * 5000}"', "cannot be written into a unit", "a shorter path"),
    ],
)
def test_wrong_credentials(line: str, what: str, hint: str) -> None:
    told = said(f"[credentials]\n{line}\n")
    assert what in told
    assert hint in told
    assert told.replace("\n", "").isprintable()


def test_longest_name_is_one_that_qemu_keeps_whole() -> None:
    (item,) = firstboot.items(guest(f'[credentials]\n{"x" * 28} = "/x"\n'))
    assert len(item.name) == 55


def test_more_credentials_than_qemu_has_room_for() -> None:
    lines = [f'c{number} = "/x"\n' for number in range(11)]
    told = said(f"[credentials]\n{''.join(lines)}")
    assert "credentials: 11 credentials, and QEMU has room for 10" in told
    assert len(guest(f"[credentials]\n{''.join(lines[:10])}").credentials) == 10


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_qemu_has_room_for_some_more(machine: str, tmp_path: Path) -> None:
    """Two more than are allowed, one of which a kernel would take; with the devices that have items of their own."""
    (tmp_path / "x").write_text("x")
    items = [("-fw_cfg", f"name=opt/x{number},file={tmp_path}/x") for number in range(12)]
    others = ("-device", "pvpanic", "-device", "VGA", "-smbios", "type=11,value=x", "-smp", "4")
    words = (*others, *(word for item in items for word in item))
    with real_qemu.running(*words, machine=machine) as running, running.connected() as monitor:
        assert monitor.execute("query-status")["status"] == "prelaunch"


def test_wrong_cloud_init() -> None:
    told = said('[cloud-init]\nuser-data = ""\nmeta-data = "x"\nvendor-data = "/x"\nnetwork-config = 1\n')
    assert "cloud-init.user-data: is empty" in told
    assert 'cloud-init.meta-data: "x" is not an absolute path' in told
    assert "cloud-init.vendor-data: unknown key" in told
    assert "cloud-init.network-config: 1 is a whole number; expected a string" in told


def test_cloud_init_without_keys_is_a_seed_all_the_same() -> None:
    assert guest("[cloud-init]\n").cloud_init == CloudInit("", "", "")
    assert guest("").cloud_init is None


PATHS = st.text(st.characters(codec="utf-8"), max_size=30).map(lambda text: f"/{text}")
ODD = st.text(st.sampled_from("\\\"'$%{};#= ab,:/.|"), min_size=1, max_size=20).map(lambda text: f"/{text}")


@given(PATHS | ODD)
def test_path_comes_back_from_a_directive(path: str) -> None:
    if wrong_path(path):
        return
    one = guest("")._replace(credentials=(Credential("a", path),), cloud_init=CloudInit(path, "", ""))
    lines = "\n".join(["[Service]", *firstboot.directives(one), "Slice=x.slice"]) + "\n"
    loads = systemd_syntax.directives(lines)
    assert [(key, systemd_syntax.specifiers(value)) for key, value in loads] == [
        ("LoadCredential", f"a:{path}"),
        ("LoadCredential", f"kvmsup.user-data:{path}"),
        ("Environment", '"KVMSUP_SEED=web"'),
        ("Slice", "x.slice"),
    ]


ALL = '[credentials]\nkey = "/k"\n[cloud-init]\nuser-data = "/u"\nnetwork-config = "/n"\n'


def root_with(tmp_path: Path, **files: bytes) -> str:
    for name, content in {"k": b"secret", "u": b"#cloud-config\n", "n": b"", **files}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / firstboot.PROGRAM[1:]).touch()
    return str(tmp_path)


def test_sources_are_there(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    sources.check(root, guest(ALL))
    assert sources.problems(root, guest(ALL)) == []


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("rm {}/k", "credentials.key: /k: No such file or directory"),
        ("rm {}/n", "cloud-init.network-config: /n: No such file or directory"),
        ("rm {0}/u; mkdir {0}/u", "cloud-init.user-data: /u is no file"),
        ("rm {0}/u; mkfifo {0}/u", "cloud-init.user-data: /u is no file"),
        (
            "truncate -s 600K {0}/k {0}/n",
            "cloud-init.network-config: /n is too large: systemd takes 1M for all of a guest's",
        ),
        ("rm {}/usr/bin/xorriso", "cloud-init: its seed is made by xorriso, and there is no /usr/bin/xorriso"),
    ],
)
def test_sources_that_would_fail_the_start(tmp_path: Path, broken: str, expected: str) -> None:
    root = root_with(tmp_path)
    subprocess.run(broken.format(root), shell=True, check=True)
    with pytest.raises(HostError) as told:
        sources.check(root, guest(ALL))
    assert told.value.what == expected
    assert told.value.hint
    (problem,) = sources.problems(root, guest(ALL))
    assert f"{'.'.join(map(str, problem.path))}: {problem.what}" == expected
    assert problem.severity == "warning"


def test_guest_without_seed_needs_no_xorriso(tmp_path: Path) -> None:
    sources.check(str(tmp_path), guest(""))


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (b"", True),
        (b"#cloud-config\nusers: []\n", True),
        (b"\n#cloud-config\n", True),
        (b"#!/bin/sh\n", True),
        (b"## template: jinja\n#cloud-config\n", True),
        (b"Content-Type: multipart/mixed; boundary=x\n", True),
        (b"\x1f\x8b\x08", True),
        (b"# cloud-config\n", False),
        (b"users:\n - root\n", False),
        (b"\xff\xfe\x00", False),
    ],
)
def test_user_data_that_would_be_passed_over(tmp_path: Path, content: bytes, known: bool) -> None:
    root = root_with(tmp_path, u=content)
    found = sources.problems(root, guest(ALL))
    assert [one.what for one in found] == (
        [] if known else ["/u does not begin as cloud-init wants, and would be passed over"]
    )


def extracted(image: Path, tmp_path: Path) -> dict[str, str]:
    out = tmp_path / "out"
    command = [firstboot.PROGRAM, "-no_rc", "-osirrox", "on", "-indev", str(image), "-extract", "/", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["chmod", "-R", "u+rwX", str(out)], check=True)
    return {path.name: path.read_text() for path in sorted(out.iterdir())}


xorriso = pytest.mark.skipif(not shutil.which("xorriso"), reason="xorriso is not installed")


@xorriso
def test_seed_has_what_was_given_and_the_rest_derived(tmp_path: Path) -> None:
    given_to_it = tmp_path / "credentials"
    given_to_it.mkdir()
    (given_to_it / "kvmsup.user-data").write_text("#cloud-config\n")
    (given_to_it / "kvmsup.network-config").write_text("version: 2\n")
    (given_to_it / "other").write_text("not for the seed")
    image = tmp_path / "seed.iso"
    for _ in range(2):  # a restart makes it anew
        seed.make("no", str(given_to_it), str(image))
    assert sorted(os.listdir(tmp_path)) == ["credentials", "seed.iso"]
    assert extracted(image, tmp_path) == {
        "meta-data": 'instance-id: "kvmsup-no"\nlocal-hostname: "no"\n',
        "network-config": "version: 2\n",
        "user-data": "#cloud-config\n",
    }
    # ECMA-119, 8.4.7: the volume identifier, by which cloud-init finds the disk.
    assert image.read_bytes()[0x8028:0x8048].rstrip() == b"CIDATA"


@xorriso
def test_create_makes_the_seed_where_the_unit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUNTIME", str(tmp_path))
    (tmp_path / "web").mkdir()
    (tmp_path / "kvmsup.meta-data").write_text("instance-id: mine\n")
    create.run({firstboot.SEED: "web", "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert extracted(tmp_path / "web/seed.iso", tmp_path) == {"meta-data": "instance-id: mine\n", "user-data": ""}


@xorriso
def test_seed_with_nothing_given(tmp_path: Path) -> None:
    seed.make("web", "", str(tmp_path / "seed.iso"))
    found = extracted(tmp_path / "seed.iso", tmp_path)
    assert found == {"meta-data": 'instance-id: "kvmsup-web"\nlocal-hostname: "web"\n', "user-data": ""}


@xorriso
def test_seed_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cloud-init's seed cannot be made: .*No such file or directory"):
        seed.make("web", "", str(tmp_path / "nowhere/seed.iso"))
    full = Path("/dev/full")
    if os.geteuid() == 0 and full.exists():
        (tmp_path / "seed.iso.part").symlink_to(full)
        with pytest.raises(HostError, match="cloud-init's seed cannot be made"):
            seed.make("web", "", str(tmp_path / "seed.iso"))
    assert not (tmp_path / "seed.iso").exists()


def test_meta_data_is_yaml_for_any_name() -> None:
    """A guest may be called what YAML takes for something else; JSON strings are YAML's, too (yaml.org, 1.2, 1.3)."""
    for name in ("no", "null", "e", "web-1", "true"):
        lines = firstboot.meta_data(name).splitlines()
        assert [json.loads(line.partition(": ")[2]) for line in lines] == [f"kvmsup-{name}", name]
