# SPDX-License-Identifier: LGPL-2.1-or-later
"""Configuration files, claims and small files below a root of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.effects import claims, configs, files, hugepages, journal
from kvmsup.entry import explain, generator
from kvmsup.errors import HostError
from kvmsup.model import claim as claim_text
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Host
from tests.unit.hosts import claim

ROOT = Path(__file__).parents[2]
SOUND = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n'


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    return str(tmp_path)


def guest_file(root: str, name: str) -> Path:
    return Path(f"{root}/etc/kvmsup/{name}.toml")


def test_names_are_sorted_and_without_scratch_files(root: str) -> None:
    for name in ("web.toml", "db.toml", ".web.toml", "web.toml~", "web.toml.bak", "README", "Web.toml"):
        Path(f"{root}/etc/kvmsup/{name}").touch()
    assert configs.names(root) == ["Web", "db", "web"]
    assert configs.names(f"{root}/nowhere") == []


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(
    root: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The generator tells it, too, and goes on with what it knows."""
    (tmp_path / "etc/kvmsup").rmdir()
    (tmp_path / "etc/kvmsup").write_text("")
    with pytest.raises(HostError) as caught:
        configs.names(root)
    assert str(caught.value) == "/etc/kvmsup: cannot read: Not a directory"
    assert generator.main([f"{root}/out"], root) == 1
    assert "/etc/kvmsup: cannot read: Not a directory" in capfd.readouterr().err


def test_reading(root: str) -> None:
    assert configs.read_guest(root, "web") is None
    assert configs.read_host(root) == b""
    guest_file(root, "web").write_bytes(b"\xff")
    assert configs.read_guest(root, "web") == b"\xff"
    guest_file(root, "gone").symlink_to("nowhere")
    assert configs.read_guest(root, "gone") is None
    guest_file(root, "masked").symlink_to("/dev/null")
    assert configs.read_guest(root, "masked") == b""


def test_no_guest_is_taken_for_itself(root: str) -> None:
    guest_file(root, "web").symlink_to("nowhere")
    assert configs.nearest(root, "wbe") == "web"
    assert configs.nearest(root, "web") == ""
    assert configs.no_guest(root, "web").hint == "kvmsup list shows those there are"
    guest_file(root, "web2").touch()
    assert configs.nearest(root, "web") == "web2"


def test_nothing_that_lies_there_is_waited_for(root: str) -> None:
    os.mkfifo(guest_file(root, "fifo"))
    assert configs.read_guest(root, "fifo") == b""
    guest_file(root, "directory").mkdir()
    guest_file(root, "endless").symlink_to("/dev/zero")
    guest_file(root, "loop").symlink_to("loop.toml")
    said = {
        "directory": "Is a directory",
        "endless": "it has over 256 KiB",
        "loop": "Too many levels of symbolic links",
    }
    for name, reason in said.items():
        with pytest.raises(HostError) as caught:
            configs.read_guest(root, name)
        assert str(caught.value) == f"/etc/kvmsup/{name}.toml: cannot read: {reason}"


def test_generator_goes_on_whatever_lies_there(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    guest_file(root, "aaa").mkdir()
    os.mkfifo(guest_file(root, "bbb"))
    guest_file(root, "ccc").write_text("x = " + "1" * 5000)
    guest_file(root, "ddd\udcff").write_text(SOUND)
    guest_file(root, "web").write_text(SOUND)
    assert generator.main([f"{root}/out"], root) == 1
    assert sorted(os.listdir(f"{root}/out")) == ["kvm-setup@web.service.d", "kvm@web.service.d"]
    assert capsys.readouterr().err.splitlines() == [
        "/etc/kvmsup/aaa.toml: cannot read: Is a directory",
        "/etc/kvmsup/bbb.toml: memory: size is missing: how much memory has the guest?",
        "/etc/kvmsup/ccc.toml: not TOML: a number with thousands of digits",
        "/etc/kvmsup/ddd?.toml: 'ddd\\udcff' cannot name a guest",
        "  hint: a lower-case letter, then up to 26 lower-case letters, digits and dashes",
    ]


def test_generator_survives_its_own_bugs(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = generator.convert

    def broken(name: str, root: str, host: Host, content: bytes) -> dict[str, str]:
        if name == "bad":
            raise KeyError("x")
        return convert(name, root, host, content)

    monkeypatch.setattr(generator, "convert", broken)
    guest_file(root, "bad").write_text(SOUND)
    guest_file(root, "web").write_text(SOUND)
    assert generator.main([f"{root}/out", f"{root}/early", f"{root}/late"], root) == 1
    assert capsys.readouterr().err == "/etc/kvmsup/bad.toml: kvmsup has a bug: KeyError('x')\n"
    assert sorted(os.listdir(root)) == ["etc", "out"]
    assert sorted(os.listdir(f"{root}/out")) == ["kvm-setup@web.service.d", "kvm@web.service.d"]


def test_generator_keeps_a_unit_delegated_while_its_guest_runs_isolated(tmp_path: Path) -> None:
    """Whatever has become of its file: here it is gone."""
    root, there = str(tmp_path), tmp_path / "run/kvmsup/isolated"
    there.mkdir(parents=True)
    for name in ("rt", "rt.77.part", "Not a name"):
        (there / name).write_text("[]")
    assert generator.main([f"{root}/normal"], root) == 0
    written = [path for path in (tmp_path / "normal").rglob("*") if path.is_file()]
    assert [str(path.relative_to(tmp_path)) for path in written] == ["normal/kvm@rt.service.d/40-kvmsup-isolated.conf"]
    assert written[0].read_text().splitlines()[1:] == ["[Service]", "Delegate=cpuset"]


def test_generator_cannot_write(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    guest_file(root, "web").write_text(SOUND)
    Path(f"{root}/out").write_text("a file")
    assert generator.main([f"{root}/out"], root) == 1
    path = f"{root}/out/kvm-setup@web.service.d/50-kvmsup.conf"
    assert capsys.readouterr().err == f"{path}: cannot write: Not a directory\n"


@pytest.mark.parametrize("closed", ["", ">&-", "<&- >&- 2>&-"])
def test_generator_without_a_standard_output(closed: str, tmp_path: Path) -> None:
    """With too few directories, so that it does not look at this machine's guests."""
    shim = tmp_path / "kvmsup-generator"
    shim.write_text((ROOT / "units" / shim.name).read_text().replace("@LIBDIR@", str(ROOT)))
    command = f"{sys.executable} -IS {shim} one two {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    usage = "usage: kvmsup-generator NORMAL-DIR [EARLY-DIR LATE-DIR]\n"
    assert (done.returncode, done.stderr) == (2, "" if "2>&-" in closed else usage)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "b", "c", "d"]])
def test_generator_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main(arguments) == 2
    assert capsys.readouterr().err == "usage: kvmsup-generator NORMAL-DIR [EARLY-DIR LATE-DIR]\n"


def test_generator_writes_to_the_log_below_its_root(root: str) -> None:
    Path(f"{root}/dev").mkdir()
    log = Path(f"{root}/dev/kmsg")
    log.touch()
    guest_file(root, "web").write_text("x = \x1b" + "y" * 2000)
    assert generator.main([f"{root}/out"], root) == 1
    assert (
        log.read_text() == f"<3>kvmsup-generator[{os.getpid()}]: /etc/kvmsup/web.toml:1:5: not TOML: Invalid value\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no guest web: no /etc/kvmsup/web.toml"),
        (SOUND, "systemd has not loaded /etc/kvmsup/web.toml yet\n  hint: systemctl daemon-reload"),
        ("a = ", "/etc/kvmsup/web.toml:1:5: not TOML: Invalid value\n  1 | a = \n    |     ^"),
    ],
)
def test_explain(root: str, text: str | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        guest_file(root, "web").write_text(text)
    assert explain.main("web", root) == 1
    assert capsys.readouterr().err == "".join(f"<3>{line}\n" for line in said.splitlines())


@pytest.mark.parametrize("write", [files.replace, lambda path, text: files.create(path, text, 0o644)])
def test_what_has_the_name_of_a_part_is_not_written_into(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    """Somebody else's link would lead to a file that is not theirs, and a killed writer's file has another mode."""
    target, part = tmp_path / "target", tmp_path / f"x.{os.getpid()}.part"
    target.write_text("old")
    part.symlink_to(target)
    write(f"{tmp_path}/x", "new")
    assert (target.read_text(), (tmp_path / "x").read_text()) == ("old", "new")
    assert sorted(os.listdir(tmp_path)) == ["target", "x"] and not (tmp_path / "x").is_symlink()
    (tmp_path / "x").unlink()
    part.touch()
    part.chmod(0o666)
    write(f"{tmp_path}/x", "newer")
    assert (tmp_path / "x").read_text() == "newer" and not (tmp_path / "x").stat().st_mode & 0o002


def test_put_goes_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    for text in ("not there yet", "there"):
        files.put(f"{tmp_path}/link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == text
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    files.put(f"{tmp_path}/fifo", "text")
    assert os.read(reading, 9) == b"text" and (tmp_path / "fifo").is_fifo()
    os.close(reading)
    (tmp_path / "null").symlink_to("/dev/null")
    files.put(f"{tmp_path}/null", "text")
    assert (tmp_path / "null").is_char_device() and (tmp_path / "null").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file", "link", "null"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/dev/full", "No space left on device"),
        ("/", "Is a directory"),
        ("/nowhere/x", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_put_where_nothing_can_be_put(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = os.path.join(tmp_path, path)
    with pytest.raises(HostError) as caught:
        files.put(path, "text")
    assert str(caught.value) == f"{path}: cannot write: {why}"
    assert os.listdir(tmp_path) == ["loop"]


def test_replace_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(str(path), "old", 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("old", 0o600)
    with pytest.raises(UnicodeEncodeError):
        files.replace(str(path), "\ud800")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(HostError) as caught:
        files.replace(f"{path}/x", "new")
    assert str(caught.value) == f"{path}/x: cannot write: Not a directory"
    assert path.read_text() == "old"


def test_write_attribute(tmp_path: Path) -> None:
    path = tmp_path / "nr"
    with pytest.raises(HostError) as caught:
        files.write_attribute(str(path), "1")
    assert str(caught.value) == f"{path}: cannot write 1: No such file or directory"
    assert not path.exists()


FULL = claim(
    "web",
    ["2", "6", "8-9"],
    emulator="0-1,4",
    scheduler="fifo:10",
    nodes="0-1,3",
    page_size=2 << 20,
    pages={0: 512, 1: 3},
    grown={0: 12},
    before={0: 500},
    ksm=True,
)._replace(
    idle=frozenset((3, 7)), iothread={"io0": frozenset((4,)), "net-1": frozenset((0, 1))}, cells=(1, 0, 3),
    fill=(frozenset((4, 6, 7)), frozenset((0,)), frozenset((9,))),
    core_scheduling=True,
    isolate=True,
    absorbed={0: 4},
)  # fmt: skip


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("dedicated", [True, False])
def test_claim_comes_back(tmp_path: Path, held: bool, dedicated: bool) -> None:
    written = FULL._replace(held=held, dedicated=dedicated)
    os.makedirs(f"{tmp_path}/run/kvmsup/claims")
    claims.write(str(tmp_path), written)
    claims.write(str(tmp_path), claim("db"))
    Path(f"{tmp_path}/run/kvmsup/claims/.web.env.part").write_text("half")
    assert claims.read_all(str(tmp_path)) == {"web": written, "db": claim("db")}
    claims.remove(str(tmp_path), "web")
    claims.remove(str(tmp_path), "web")
    assert claims.read(str(tmp_path), "web") is None


def test_claim_is_what_systemd_reads_too(tmp_path: Path) -> None:
    """The file is an EnvironmentFile= as well, so a shell must read the same from it without any quoting."""
    text = claim_text.render(FULL)
    for line in text.splitlines():
        name, _, value = line.partition("=")
        assert name.startswith("KVMSUP_") and set(value) <= set("0123456789abcdefghijklmnopqrstuvwxyz,-:= ")
    assert "KVMSUP_HOST_NODES=0-1,host-nodes=3\n" in text
    assert "KVMSUP_FILL_0=4,cpu-affinity=6-7\n" in text
    variables = dict(line.split("=", 1) for line in text.splitlines())
    assert claim_text.from_environment(variables, "x") == FULL
    assert FULL.own_cpus == {2, 3, 6, 7, 8, 9}
    assert FULL._replace(dedicated=False).own_cpus == frozenset()
    assert tmp_path.exists()


# What only systemd reads, and what older claims lack.
OPTIONAL = {
    f"KVMSUP_{name}"
    for name in (
        "HOST_NODES", "LOADED", "IDLE_CPUS", "IOTHREAD_CPUS", "CORE_SCHEDULING", "CELLS", "CELL_0", "CELL_1", "CELL_2",
        "FILL_0", "FILL_1", "FILL_2", "SIZE", "BALLOON", "BALLOON_AUTO", "CID", "READY", "AGENT", "PAUSED", "NETS",
        "DISKS", "AIO", "FIRMWARE", "NVRAM_TEMPLATE", "POOL_ABSORBED", "ISOLATE",
    )
}  # fmt: skip
LINES = claim_text.render(FULL).splitlines()


@pytest.mark.parametrize("missing", [line for line in LINES if line.split("=")[0] not in OPTIONAL])
def test_claim_without_a_line(missing: str) -> None:
    text = "\n".join(line for line in LINES if line != missing)
    with pytest.raises(HostError) as caught:
        claim_text.parse(text, "/run/web.env")
    name = missing.partition("=")[0]
    hint = "kvmsup writes it; nobody else should"
    assert str(caught.value) == f"/run/web.env is not a claim: KeyError('{name}')\n  hint: {hint}"


@given(st.sampled_from(LINES), st.text(max_size=10))
def test_claim_with_a_line_that_is_something_else(line: str, value: str) -> None:
    name = line.partition("=")[0]
    text = "\n".join(f"{name}={value}" if other == line else other for other in LINES)
    try:
        found: Claim = claim_text.parse(text, "x")
    except HostError as error:
        assert str(error).startswith("x is not a claim: ")
    else:
        assert isinstance(found, Claim)


def test_corrupt_claims(tmp_path: Path) -> None:
    os.makedirs(f"{tmp_path}/run/kvmsup/claims")
    path = Path(claims.path(str(tmp_path), "web"))
    for content in (b"", b"\xff\n", b"KVMSUP_GUEST=web\n", b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(HostError, match=f"^{path} is not a claim: ") as caught:
            claims.read_all(str(tmp_path))
        assert caught.value.hint.endswith(f": systemctl stop kvm@web kvm-setup@web, then rm {path}")


def test_lock_excludes_others(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kvmsup.effects import claims\n"
        "with claims.lock(sys.argv[2]): print('have it', flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parents[2]), str(tmp_path)]
    with claims.lock(str(tmp_path)):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    assert other.communicate(timeout=20)[0] == "have it\n"


def test_lock_without_a_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(HostError) as caught, claims.lock(str(tmp_path)):
        pass
    assert str(caught.value) == f"{tmp_path}/run/kvmsup: cannot lock the claims: Not a directory"


def test_the_journal_takes_what_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's name, or what QEMU says of itself, must not end whoever tells of it."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    path = tmp_path / "run/systemd/journal/socket"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        journal.tell(str(tmp_path), "web", journal.ERROR, "name \udcff")
        assert b"name \\udcff\n" in receiver.recv(4096)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read: Is a directory"),
        ({"vcpu": ()}, "is not a claim: it has no CPU for some of its threads"),
        ({"emulator": frozenset()}, "is not a claim: it has no CPU for some of its threads"),
        ({"guest": "db"}, "is a claim of another guest"),
    ],
)
def test_what_stands_where_a_claim_should(tmp_path: Path, text: dict[str, Any] | None, said: str) -> None:
    path = tmp_path / "run/kvmsup/claims/web.env"
    path.parent.mkdir(parents=True)
    if text is None:
        path.mkdir()
    else:
        path.write_text(claim_text.render(claim("web")._replace(**text)))
    with pytest.raises(HostError, match=f"^{path}:? {said}"):
        claims.read_all(str(tmp_path))


def test_files_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "run/kvmsup").mkdir(parents=True)
    (tmp_path / "run/kvmsup/claims").touch()
    with pytest.raises(HostError, match="claims: cannot read: Not a directory"):
        claims.names(str(tmp_path))
    pool = tmp_path / "sys/devices/system/node/node0/hugepages/hugepages-2048kB"
    (pool / "nr_hugepages").mkdir(parents=True)
    with pytest.raises(HostError, match="hugepages-2048kB: cannot read: Is a directory"):
        hugepages.pools(str(tmp_path), 0)
