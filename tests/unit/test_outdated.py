# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest runs with against its file and the installed QEMU; real processes stand for QEMU."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup.cli import check, listing, show, status
from kvmsup.effects import configs, outdated, running
from kvmsup.entry import generator
from kvmsup.model import config
from kvmsup.plan import agreed
from kvmsup.plan.changes import flatten
from kvmsup.plan.paths import BINARY
from tests.unit import trees
from tests.unit.hosts import claim

WEB = '[machine]\ntype = "pc-q35-7.2"\n[cpu]\nvcpus = 2\nmaxcpus = 4\n[memory]\nsize = "1G"\n'


@pytest.fixture
def root(tmp_path: Path) -> str:
    os.symlink("/proc", tmp_path / "proc")
    trees.write(str(tmp_path), configs.guest_file("web"), WEB)
    return str(tmp_path)


def edit(root: str, text: str) -> None:
    trees.write(root, configs.guest_file("web"), text)


def test_a_file_against_what_runs(root: str) -> None:
    before = outdated.configured(root, "web")
    assert before and outdated.changed(root, before) is None
    running.write(root, "web", flatten(before))
    assert outdated.changed(root, before) == []
    edit(root, WEB.replace("vcpus = 2", "vcpus = 3").replace("7.2", "7.1"))
    now = outdated.configured(root, "web")
    assert now
    found = outdated.changed(root, now)
    assert found
    # The machine comes first: that is the order of the file's description.
    assert [(one.told, one.how) for one in found] == [
        ("machine.type pc-q35-7.2 → pc-q35-7.1", "restart"),
        ("cpu.vcpus 2 → 3", "live"),
    ]
    edit(root, "[")
    assert outdated.configured(root, "web") is None
    assert outdated.configured(root, "nobody") is None


@pytest.mark.parametrize("text", ["", "[1]", "nonsense", '{"cpu.vcpus": ', "[" * 100_000])
def test_a_record_that_is_none(root: str, text: str) -> None:
    trees.write(root, "/run/kvmsup/running/web.json", text)
    assert running.read(root, "web") is None
    Path(running.path(root, "web")).write_bytes(b'{"x": "\xff"}')
    assert running.read(root, "web") is None


def test_a_record_comes_and_goes(root: str) -> None:
    running.write(root, "web", {"cpu.features": ["+x"], "memory.balloon": None})
    assert running.read(root, "web") == {"cpu.features": ["+x"], "memory.balloon": None}
    for _ in range(2):
        running.remove(root, "web")
        assert running.read(root, "web") is None


def test_an_outline_is_what_the_generator_has_left_of_a_file(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generator.main([f"{root}/run/systemd/generator"], root) == 0
    wanted = agreed.Outline(2, 1 << 30, 0, ksm=False, dedicated=False, description="KVM guest web")
    with monkeypatch.context() as patch:
        patch.setattr(outdated, "configured", lambda *_: pytest.fail("TOML was read"))
        assert outdated.outline(root, "web", b"", None) == (wanted, [])
        held = claim("web")._replace(loaded=agreed.fingerprint(configs.read_guest(root, "web") or b"", b""))
        assert outdated.outline(root, "web", b"", held) == (wanted, [])
    # Whatever is edited, or was reloaded live, is read anew.
    running.write(root, "web", flatten(config.read_guest("web", "", WEB.encode()).guest))
    stale = held._replace(loaded="0" * 16)
    assert outdated.outline(root, "web", b"", stale) == (wanted, [])
    assert outdated.outline(root, "web", b"[x]", held) == (wanted, [])
    edit(root, WEB.replace("vcpus = 2", "vcpus = 3"))
    found, changed = outdated.outline(root, "web", b"", held)
    assert found == wanted._replace(vcpus=3) and changed and changed[0].key == "cpu.vcpus"
    edit(root, "[")
    assert outdated.outline(root, "web", b"", held) == (None, None)
    assert outdated.outline(root, "nobody", b"", None) == (None, None)


@pytest.mark.parametrize("description", ["x", " blanks ", 'a "b" = %i', "C:\\", "[Service]", "ü=…"])
def test_an_outline_has_the_description_as_it_is(description: str) -> None:
    guest = config.read_guest("web", "", WEB.encode()).guest._replace(description=description)
    section = agreed.outline_section(guest)
    assert not any(line.endswith("\\") for line in section)
    text = "\n".join(["[Service]", f"Environment={agreed.LOADED}=7", *section])
    found = agreed.outline_in(text, "7")
    assert found and found.description == f"KVM guest web: {description}"


@pytest.mark.parametrize("spoiled", ["vcpus=", "[X-Kvmsup]", "Environment=", "memory", "description="])
def test_an_outline_of_an_older_kvmsup_is_none(spoiled: str) -> None:
    guest = config.read_guest("web", "", WEB.encode()).guest
    text = "\n".join(["[Service]", f"Environment={agreed.LOADED}=7", *agreed.outline_section(guest)])
    assert agreed.outline_in(text, "7") == agreed.outline(guest)
    assert agreed.outline_in(text, "8") is None
    assert agreed.outline_in(text.replace(spoiled, "x", 1), "7") is None


@contextlib.contextmanager
def process(root: str) -> Iterator[int]:
    """A process of the program that is installed as QEMU."""
    with subprocess.Popen([root + BINARY, "60"]) as found:
        try:
            yield found.pid
        finally:
            found.kill()


def install(root: str, built: int) -> None:
    """As dpkg does: beside it, then renamed over; the time is that of the build."""
    new = Path(f"{root}{BINARY}.new")
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/sleep", new)
    os.utime(new, (built, built))
    new.rename(root + BINARY)


def test_the_installed_qemu(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outdated, "installed_qemu", lambda: "10.0.13")
    install(root, 1000)
    with process(root) as pid:
        assert outdated.qemu(root, pid) == ("", "")
        install(root, 1000)
        assert outdated.qemu(root, pid) == ("", "")  # the same package again
        install(root, 2000)
        assert outdated.qemu(root, pid) == ("older", "10.0.13")
        install(root, 500)
        assert outdated.qemu(root, pid) == ("another", "10.0.13")
        os.unlink(root + BINARY)
        assert outdated.qemu(root, pid) == (None, "")
    assert outdated.qemu(root, pid) == (None, "")


def test_its_version() -> None:
    said = outdated.installed_qemu()
    if not shutil.which(BINARY):
        assert said == ""
        return
    told = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
    assert said and f"version {said}" in told


def test_what_systemd_has_loaded(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outdated.loaded(root, "web") is None
    generated = f"{root}/run/systemd/generator"
    os.makedirs(generated)
    assert outdated.loaded(root, "web") is False
    assert generator.main([generated], root) == 0
    assert outdated.loaded(root, "web") is True
    edit(root, WEB + "# edited\n")
    assert outdated.loaded(root, "web") is False
    trees.write(root, configs.HOST_FILE, "")
    assert generator.main([generated], root) == 0
    assert outdated.loaded(root, "web") is True
    trees.write(root, configs.HOST_FILE, '[cpu]\nhousekeeping = "0"')
    assert outdated.loaded(root, "web") is False
    assert capsys.readouterr().err == ""


def test_check_waits_a_moment_for_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that is picked up by itself is no finding; one that is not, is, and all guests wait only once."""
    monkeypatch.setattr(check, "_LOADED_SECONDS", 0.1)
    check._deadline.cache_clear()
    answers = [False, False, False, True]
    monkeypatch.setattr(outdated, "loaded", lambda *_: answers.pop(0))
    assert check._not_loaded("web", "web.toml", "") == ()
    assert not answers
    monkeypatch.setattr(outdated, "loaded", lambda *_: False)
    assert check._not_loaded("web", "web.toml", "/somewhere") == ()
    for _ in range(2):
        (found,) = check._not_loaded("web", "web.toml", "")
        assert str(found) == (
            "web.toml: warning: systemd has not loaded this file as it is now: a start would be refused\n"
            "  hint: systemctl daemon-reload"
        )
    check._deadline.cache_clear()


CHANGED: list[dict[str, Any]] = [
    {"key": "cpu.vcpus", "running": 2, "configured": 4, "how": "live", "why": ""},
    {"key": "memory.size", "running": "1G", "configured": "2G", "how": "restart", "why": ""},
    {"key": "memory.balloon.min", "running": "1G", "configured": "2G", "how": "restart", "why": "with memory.size"},
]


def test_status_lines() -> None:
    assert status._changed_lines(CHANGED) == [
        "  configured differently: cpu.vcpus 2 → 4 (systemctl reload)",
        "                          memory.size 1G → 2G (restart)",
        "                          memory.balloon.min 1G → 2G (restart, with memory.size)",
    ]
    assert status._changed_lines([]) == []


@pytest.mark.parametrize(
    ("changed", "qemu", "said"),
    [
        (None, None, []),
        ([], {"differs": "", "installed": ""}, []),
        (CHANGED, {"differs": None, "installed": ""}, ["edited: reload"]),
        (CHANGED[1:], None, ["edited: restart"]),
        ([], {"differs": "older", "installed": "10.0.13"}, ["older QEMU: restart to use 10.0.13"]),
        (
            CHANGED,
            {"differs": "another", "installed": ""},
            ["edited: reload", "another QEMU: restart to use the installed one"],
        ),
    ],
)
def test_notes_of_the_listing(changed: Any, qemu: Any, said: list[str]) -> None:
    assert list(listing._notes({"changed": changed, "qemu": qemu})) == said


def test_the_listing_has_notes_only_where_there_are_some() -> None:
    plain = [["web", "active", "2", "0-7", "shared", "1G", "4K", "", "", ""]]
    heads, rows = listing._without_empty_notes(plain)
    assert show.table(heads, rows)[0].split() == "GUEST STATE VCPUS CPUS PLACEMENT MEMORY PAGES NODE KSM".split()
    heads, rows = listing._without_empty_notes([*plain, [*plain[0][:-1], "edited: reload"]])
    assert show.table(heads, rows)[2].endswith("-    edited: reload")
