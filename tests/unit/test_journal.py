# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes to the journal and with which fields; and that code, catalog and man page speak of the same messages."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsup.catalog import IDS
from kvmsup.effects import claims, journal
from kvmsup.entry import ended, explain, generator, release, setup
from kvmsup.entry.resident.merging import Merging
from kvmsup.plan import agreed, pages, refusals
from tests.unit import journald, trees
from tests.unit.hosts import claim
from tests.unit.journald import Journal

ROOT = Path(__file__).parents[2]
CATALOG = (ROOT / "units/kvmsup.catalog").read_text("utf-8")
ENTRIES = re.findall(r"^# (\S+)\n-- ([0-9a-f]{32})\n(.*?)(?=\n# \S+\n-- |\Z)", CATALOG, re.MULTILINE | re.DOTALL)
SOUND = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n'
# Said also, or only, where no guest is meant.
OF_THE_HOST = {"file-wrong", "ksm", "ksm-left-alone", "no-ksm", "supervisor-failed"}
# Where a call has the name: the argument's position.
CALLS = {"say": 2, "tell": 4, "Told": 2, "Taken": 3, "KvmsupError": 2, "HostError": 2, "Refusal": 2, "QmpError": 2}


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal below tmp_path, which is the host's too, for programs of a service."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    # As root: who is not, sees none.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with journald.listening(tmp_path) as found:
        yield found


@pytest.fixture
def ours(listening: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """For programs that speak for their own unit, and so know no other root."""
    monkeypatch.setattr(journal, "_SOCKET", f"{tmp_path}{journal._SOCKET}")
    return listening


def names_in(tree: ast.AST) -> Iterator[str]:
    """What the code says by the names of the catalog's entries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [word.value for word in node.keywords if word.arg == "catalog"]
            if called in CALLS:
                given += node.args[CALLS[called] : CALLS[called] + 1]
            for argument in given:
                yield from (one.value for one in ast.walk(argument) if isinstance(one, ast.Constant))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "catalog":
            assert isinstance(node.value, ast.Constant)
            yield node.value.value


def test_each_message_that_is_said_is_known_and_each_that_is_known_is_said() -> None:
    said = {name for path in (ROOT / "kvmsup").rglob("*.py") for name in names_in(ast.parse(path.read_text("utf-8")))}
    assert said - {""} == IDS.keys()


def test_each_has_an_id_of_its_own() -> None:
    assert len(set(IDS.values())) == len(IDS)
    # Of version 4 (RFC 9562), as systemd-id128 new makes them.
    assert all(re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", one) for one in IDS.values())


def test_the_catalog_has_them_all_in_their_order() -> None:
    assert [(name, number) for name, number, _ in ENTRIES] == list(IDS.items())
    assert CATALOG.count("\n-- ") == len(ENTRIES)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, _, text in ENTRIES])
def test_an_entry_says_what_to_do(name: str, text: str) -> None:
    head, _, body = text.partition("\n\n")
    subject, *others = head.splitlines()
    assert re.fullmatch(r"Subject: .{10,80}", subject)
    assert others == ["Defined-By: kvmsup", "Documentation: man:kvmsup(1)"]
    meaning, _, remedy = body.partition("\n\nWhat to do: ")
    assert len(meaning) > 60
    assert len(remedy) > 5
    assert all(len(line) <= 110 for line in text.splitlines())
    variables = set(re.findall(r"@([A-Z_]+)@", text))
    assert variables == (set() if name in OF_THE_HOST else {"KVMSUP_GUEST"})


def test_the_man_page_lists_them() -> None:
    page = (ROOT / "packaging/man/kvmsup.1.rst").read_text("utf-8")
    assert re.findall(r"^    ([0-9a-f]{32})  \w", page, re.MULTILINE) == list(IDS.values())


def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    if not shutil.which("journalctl"):
        pytest.skip("journalctl is not installed")
    for directory in ("usr/lib/systemd/catalog", "var/lib/systemd/catalog"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/catalog/kvmsup.catalog").write_text(CATALOG)
    assert journalctl(tmp_path, "--update-catalog") == ""
    listed = dict(line.split(" ", 1) for line in journalctl(tmp_path, "--list-catalog").splitlines())
    subjects = {number: text.splitlines()[0].removeprefix("Subject: ") for _, number, text in ENTRIES}
    assert listed == {number: f"kvmsup: {subject}" for number, subject in subjects.items()}
    for _, number, text in ENTRIES:
        assert journalctl(tmp_path, "--dump-catalog", number).strip() == f"-- {number}\n{text.strip()}"


def journalctl(root: Path, *arguments: str) -> str:
    command = ["journalctl", f"--root={root}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_unit_of_one_guest_says_whose_it_is() -> None:
    units = sorted((ROOT / "units").glob("*@.service"))
    assert len(units) == 3
    assert all("\nLogExtraFields=KVMSUP_GUEST=%i\n" in unit.read_text() for unit in units)


def test_every_unit_tells_its_programs_which_it_is() -> None:
    """But for the listener, which may open no socket."""
    units = {unit.name: unit.read_text() for unit in (ROOT / "units").glob("*.service")}
    del units["kvmsup-listen.service"]
    assert len(units) == 5
    assert all(f"\nEnvironment=KVMSUP_UNIT={name.replace('@', '@%i')}\n" in text for name, text in units.items())


def test_a_refusal_shows_under_both_units(listening: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMSUP_UNIT", "kvm-setup@web.service")
    assert setup.main("web", str(tmp_path)) == 1
    (said,) = listening.messages()
    assert said["OBJECT_SYSTEMD_UNIT"] == ["kvm@web.service", "kvm-setup@web.service"]
    assert said["KVMSUP_GUEST"] == ["web"]


def test_other_units_keep_the_priority_where_there_is_no_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVMSUP_UNIT", "kvm-ready@web.service")
    journal.say(journal.ERROR, "one\ntwo")
    assert capfd.readouterr().err == "<3>one\n<3>two\n"


def test_a_refused_start(listening: Journal, tmp_path: Path) -> None:
    assert setup.main("web", str(tmp_path)) == 1
    assert listening.messages() == [
        {
            "MESSAGE": ["there is no guest web: no /etc/kvmsup/web.toml\n  hint: kvmsup.guest(5) describes the file"],
            "PRIORITY": ["3"],
            "SYSLOG_IDENTIFIER": ["kvmsup"],
            "MESSAGE_ID": [IDS["no-guest"]],
            "KVMSUP_GUEST": ["web"],
            "OBJECT_SYSTEMD_UNIT": ["kvm@web.service"],
        }
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("size = ", "file-wrong"),
        (SOUND + '[cpu]\nvcpus = 3\n[placement]\ncpus = "dedicated"', "no-cpus"),
        (SOUND + "[placement.vcpu]\n0 = '0'\n[placement]\ncpus = 'dedicated'", "no-cpus"),
        (SOUND + '[placement]\nnodes = "0"\n[placement.vcpu]\n0 = "2"', "no-cpus"),
        (SOUND + 'hugepages = "2M"', "no-pages"),
        (SOUND.replace("[memory]", 'kernel = "/none"\n[memory]'), "start-refused"),
    ],
)
def test_each_reason_has_its_own(
    listening: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    """On a host with two small nodes and hardly any memory."""
    root = str(tmp_path)
    trees.cpus(root, {0: "0", 1: "1", 2: "2"}, {0: "0-1", 1: "2"})
    for node in (0, 1):
        trees.Pools(root).create(node, 0)
        trees.write(root, f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemFree: 12288 kB")
    trees.write(root, "/dev/kvm", "")
    trees.write(root, "/etc/kvmsup/web.toml", text)
    monkeypatch.setenv(agreed.LOADED, agreed.fingerprint(f"{text}\n".encode(), b""))
    assert setup.main("web", root) == 1
    (said,) = listening.messages()
    assert (said["MESSAGE_ID"], said["KVMSUP_GUEST"]) == ([IDS[name]], ["web"]), said["MESSAGE"]


def test_a_stale_file(listening: Journal, tmp_path: Path) -> None:
    trees.cpus(str(tmp_path), {0: "0"}, {0: "0"})
    trees.write(str(tmp_path), "/etc/kvmsup/web.toml", SOUND)
    assert setup.main("web", str(tmp_path)) == 1
    (said,) = listening.messages()
    assert said["MESSAGE_ID"] == [IDS["not-loaded"]]


def test_a_failed_release(listening: Journal, tmp_path: Path) -> None:
    trees.write(str(tmp_path), "/run/kvmsup/claims/web.env", "nonsense")
    assert release.main("web", str(tmp_path)) == 1
    (said,) = listening.messages()
    assert (said["MESSAGE_ID"], said["KVMSUP_GUEST"]) == ([IDS["release-failed"]], ["web"])


def test_other_guests_are_the_reason_or_not() -> None:
    assert isinstance(refusals.no_cpus("what", "hint", ["db"]), refusals.Taken)
    assert not isinstance(refusals.no_cpus("what", "hint"), refusals.Taken)
    assert {refusals.no_cpus("what", "hint", holders).catalog for holders in ([], ["db"])} == {"no-cpus"}
    assert refusals.Taken("what", "hint", ["db"]).catalog == "in-use"
    short = pages.Shortfall(0, 2 << 20, 4, 4, None, {0: 0}, 0, 0, {}, (), 0)
    assert pages.refusal(short).catalog == "no-pages"


def test_the_guests_own_unit(ours: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kvm@web: its programs say themselves whose they are, as they may have ended when journald asks systemd."""
    monkeypatch.setenv("KVMSUP_UNIT", "kvm@web.service")
    monkeypatch.setenv("SERVICE_RESULT", "oom-kill")
    assert ended.main("web", str(tmp_path)) == 0
    assert explain.main("web", str(tmp_path)) == 1
    out_of_memory, no_guest = ours.messages()
    assert out_of_memory["MESSAGE_ID"] == [IDS["out-of-memory"]]
    assert no_guest["MESSAGE_ID"] == [IDS["no-guest"]]
    assert all(one["OBJECT_SYSTEMD_UNIT"] == ["kvm@web.service"] for one in (out_of_memory, no_guest))
    assert all(one["KVMSUP_GUEST"] == ["web"] for one in (out_of_memory, no_guest))


def test_what_concerns_several_guests(ours: Journal, tmp_path: Path) -> None:
    """Each finds it; where the kernel has no KSM, and where somebody else drives it."""
    root = str(tmp_path)
    (tmp_path / "run/kvmsup/claims").mkdir(parents=True)
    for name in ("web", "db"):
        claims.write(root, claim(name, ksm=True))
    claims.write(root, claim("other"))
    trees.write(root, "/etc/kvmsup.toml", '[ksm]\npolicy = "always"')
    task = Merging(root, lambda _: None)
    task.act()
    (said,) = ours.messages()
    assert said["KVMSUP_GUEST"] == ["db", "web"]
    assert said["MESSAGE_ID"] == [IDS["no-ksm"]]
    assert "OBJECT_SYSTEMD_UNIT" not in said


def test_the_generator(listening: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the journal where there is one; the kernel's log, which is there at early boot, then has nothing of it."""
    root = str(tmp_path)
    trees.write(root, "/dev/kmsg", "")
    for name, text in (("good", '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"'), ("bad", "x = 1\ny = 2")):
        trees.write(root, f"/etc/kvmsup/{name}.toml", text)
    monkeypatch.setenv("SYSTEMD_SCOPE", "system")
    assert generator.main([f"{root}/out"], root) == 1
    (said,) = listening.messages()
    assert said["KVMSUP_GUEST"] == ["bad"]
    assert said["SYSLOG_IDENTIFIER"] == ["kvmsup-generator"]
    assert said["MESSAGE_ID"] == [IDS["file-wrong"]]
    lines = said["MESSAGE"][0].splitlines()
    assert len(lines) > 2
    assert all(line.startswith("/etc/kvmsup/bad.toml") for line in lines)
    assert trees.read(root, "/dev/kmsg") == ""
    monkeypatch.delenv("SYSTEMD_SCOPE")  # by hand
    assert generator.main([f"{root}/out"], root) == 1
    assert listening.messages() == []
    assert "/etc/kvmsup/bad.toml" in trees.read(root, "/dev/kmsg")


def test_a_journal_that_takes_nothing_is_not_waited_for(
    listening: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its queue is full, and nobody reads."""
    monkeypatch.setattr(journal, "_PATIENCE_SECONDS", 0.01)
    began = time.monotonic()
    for number in range(10_000):
        journal.tell(str(tmp_path), "web", journal.ERROR, f"message {number}")
        if told := capfd.readouterr().err:
            break
    assert told == f"message {number}\n"
    assert 0 < number == len(listening.messages())
    assert time.monotonic() - began < 60


def test_a_run_that_is_good_needs_no_catalog() -> None:
    imports = (name for name in (ROOT / "kvmsup").rglob("*.py") if "kvmsup.catalog import" in name.read_text("utf-8"))
    assert [path.name for path in imports] == ["journal.py"]
    tree = ast.parse((ROOT / "kvmsup/effects/journal.py").read_text("utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "kvmsup.catalog"]
