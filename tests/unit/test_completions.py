# SPDX-License-Identifier: LGPL-2.1-or-later
"""The completions of bash, zsh and fish: what argparse takes is what they offer, and what the man page has."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from kvmsup import cli
from tests.unit import shells

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "packaging/man/kvmsup.1.rst").read_text("utf-8")
QEMU = "qemu-system-x86_64"

# What the test's host has.
WITH_FILE, RUNNING = {"db", "web"}, {"gone", "web"}
BRIDGES, ELSEWHERE = {"br0"}, {"other"}
FILES, DIRECTORIES = {"a.iso", "dir", "my file.qcow2"}, {"dir"}
KEYS = {"none", *(f"^{letter}" for letter in "@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_")}
NOTHING: set[str] = set()


@cache
def models() -> set[str]:
    """What QEMU says in answer to another question than the completions ask."""
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed")
    ask = "import sys; from kvmsup import cli; sys.exit(cli.main(['cpu-models', '--accel', 'tcg', '--json']))"
    done = subprocess.run(["python3", "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    return {model["name"] for model in json.loads(done.stdout)["models"]}


@cache
def machines() -> set[str]:
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed")
    said = subprocess.run([QEMU, "-machine", "help"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in said.splitlines()}
    return {name for name in names if name in ("pc", "q35") or name.startswith(("pc-q35-", "pc-i440fx-"))}


# What can be a verb's first word; None where it has none.
FIRST: dict[str, Callable[[], set[str]] | None] = {
    "balloon": lambda: RUNNING,
    "check": lambda: WITH_FILE,
    "console": lambda: RUNNING,
    "cpu-models": models,
    "freeze": lambda: RUNNING,
    "host": None,
    "import": lambda: FILES,
    "list": None,
    "new": lambda: NOTHING,
    "plan": lambda: WITH_FILE,
    "status": lambda: WITH_FILE | RUNNING,
    "topology": None,
    "verify": lambda: RUNNING,
}
# What can be an option's value, where argparse does not say it.
VALUES: dict[str, Callable[[], set[str]]] = {
    "--bridge": lambda: BRIDGES,
    "--cdrom": lambda: FILES,
    "--description": lambda: NOTHING,
    "--detach-key": lambda: KEYS,
    "--disk": lambda: NOTHING,
    "--hostname": lambda: NOTHING,
    "--image": lambda: FILES,
    "--interval": lambda: NOTHING,
    "--machine": machines,
    "--memory": lambda: NOTHING,
    "--name": lambda: NOTHING,
    "--noise": lambda: NOTHING,
    "--output": lambda: FILES,
    "--root": lambda: DIRECTORIES,
    "--ssh-key": lambda: FILES,
    "--svg": lambda: FILES,
    "--user-data": lambda: FILES,
    "--vcpus": lambda: NOTHING,
}

TOP = cli.parser()
SUBPARSERS = next(action for action in TOP._actions if isinstance(action, argparse._SubParsersAction))
VERBS: dict[str, argparse.ArgumentParser] = dict(SUBPARSERS.choices)
HELP = {action.dest: action.help or "" for action in SUBPARSERS._choices_actions}


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The long options."""
    return {name: action for action in parser._actions for name in action.option_strings if name.startswith("--")}


def has_value(action: argparse.Action) -> bool:
    """Whether the next word is its value; what may be left out can only be given as --option=value."""
    return action.nargs not in (0, "?")


VALUED = [(verb, name) for verb in VERBS for name, action in options(VERBS[verb]).items() if has_value(action)]


@pytest.fixture(scope="module")
def on() -> Iterator[shells.Host]:
    with shells.host() as host:
        for name in WITH_FILE:
            host.guest(name)
        host.running("web")
        host.running("gone", "dedicated")
        for path in ("net/br0/bridge", "net/eth0/queues", "here/dir/etc/kvmsup"):
            (host.directory / path).mkdir(parents=True)
        for path in ("kvmsup/Not A Guest;.toml", "here/a.iso", "here/my file.qcow2", "here/dir/etc/kvmsup/other.toml"):
            (host.directory / path).touch()
        yield host


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, on: shells.Host) -> Iterator[shells.Shell]:
    with shells.started(request.param, on) as started:
        yield started


def offered(shell: shells.Shell, line: str, option: str = "") -> set[str]:
    """What it offers, without what differs from shell to shell: the slash of a directory, a repeated --option=."""
    found = [word.removeprefix(f"{option}=").rstrip("/=") for word in shell.offers(line)]
    assert len(set(found)) == len(found)
    return set(found)


def test_verbs(shell: shells.Shell) -> None:
    assert offered(shell, "kvmsup ") == set(VERBS)
    assert offered(shell, "kvmsup c") == {verb for verb in VERBS if verb.startswith("c")}
    assert offered(shell, "kvmsup --") == set(options(TOP))


@pytest.mark.parametrize("verb", VERBS)
def test_options(shell: shells.Shell, verb: str) -> None:
    assert offered(shell, f"kvmsup {verb} --") == set(options(VERBS[verb]))


def test_options_of_no_verb(shell: shells.Shell) -> None:
    assert offered(shell, "kvmsup nonsense ") == NOTHING


@pytest.mark.parametrize(("verb", "option"), VALUED)
def test_values(shell: shells.Shell, verb: str, option: str) -> None:
    choices = options(VERBS[verb])[option].choices
    expected = set(choices) if choices else VALUES[option]()
    assert offered(shell, f"kvmsup {verb} {option} ") == expected
    if expected in (FILES, DIRECTORIES):
        # zsh and fish put in several words with the option before each, a file's too.
        expected = {next(iter(DIRECTORIES))}
        assert offered(shell, f"kvmsup {verb} {option}=d", option) == expected
    elif expected:
        assert offered(shell, f"kvmsup {verb} {option}=", option) == expected


def test_every_value_is_tested() -> None:
    assert set(VALUES) == {option for verb, option in VALUED if not options(VERBS[verb])[option].choices}


@pytest.mark.parametrize("verb", VERBS)
def test_first_word(shell: shells.Shell, verb: str) -> None:
    expected = FIRST[verb]
    words = [action for action in VERBS[verb]._actions if not action.option_strings]
    assert (expected is None) == (not words)
    if expected:
        assert offered(shell, f"kvmsup {verb} ") == expected()


@pytest.mark.parametrize("verb", VERBS)
def test_no_guest_twice(shell: shells.Shell, verb: str) -> None:
    """Several guests where argparse takes them, and none where it takes one."""
    several = any(action.dest == "guests" for action in VERBS[verb]._actions)
    guests = {"check": WITH_FILE, "verify": RUNNING}.get(verb, NOTHING) - {"web"}
    assert several == bool(guests)
    if verb != "freeze":
        left = offered(shell, f"kvmsup {verb} --json web ")
        assert {word for word in left if not word.startswith("--")} == guests


@pytest.mark.parametrize("option", ["--root dir", "--root=dir"])
@pytest.mark.parametrize("verb", ["check", "plan"])
def test_guests_of_another_root(shell: shells.Shell, verb: str, option: str) -> None:
    assert offered(shell, f"kvmsup {verb} {option} ") == ELSEWHERE


def test_the_command_of_freeze_is_another(shell: shells.Shell) -> None:
    assert "unshare" in offered(shell, "kvmsup freeze web unsha")
    assert "unshare" in offered(shell, "kvmsup freeze --json web unsha")
    assert offered(shell, "kvmsup freeze web ls ") == FILES
    assert not {"--json", "--help"} & offered(shell, "kvmsup freeze web true --")


def test_verbs_are_described(shell: shells.Shell) -> None:
    if isinstance(shell, shells.Fish):
        assert dict(line.split("\t") for line in shell.described("kvmsup ")) == HELP
        for verb, parser in VERBS.items():
            described = dict(line.partition("\t")[::2] for line in shell.described(f"kvmsup {verb} --"))
            assert described == {name: action.help or "" for name, action in options(parser).items()}


def test_zsh_describes_as_argparse_does() -> None:
    """What a colon or bracket would end there has a backslash."""
    text = (shells.COMPLETIONS / "kvmsup.zsh").read_text("utf-8")
    for verb, told in HELP.items():
        line = f"{verb}:" + told.replace(":", "\\:")
        assert f"'{line}'" in text or f'"{line}"' in text
    for parser in VERBS.values():
        for name, action in options(parser).items():
            told = "[" + action.help.replace("]", "\\]") + "]" if action.help else ":"
            told = f"=-{told}" if action.nargs == "?" else told
            assert f"{name}{'=' if has_value(action) else ''}{told}" in text


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_host_with_nothing(name: str) -> None:
    """No guests, a directory that is not to be read, and no QEMU: nothing is offered, and nothing said of it."""
    with shells.host() as host:
        if os.geteuid() == 0:
            # Without root the shells are root in a namespace of their own, and may read it.
            host.guest("web")
            (host.directory / "kvmsup").chmod(0o700)
        host.without_qemu()
        with shells.started(name, host) as shell:
            for line in ("check", "status", "verify", "console", "new --bridge", "new --machine", "cpu-models"):
                assert offered(shell, f"kvmsup {line} ") == NOTHING
            assert offered(shell, "kvmsup check --root nowhere ") == NOTHING
            assert offered(shell, "kvmsup s") == {"status"}


def test_bash_with_other_settings(on: shells.Host) -> None:
    with shells.started("bash", on, "shopt -s failglob nocaseglob; set -o nounset -o noclobber; IFS=o") as shell:
        for verb, expected in (("check", WITH_FILE), ("verify", RUNNING), ("new --bridge", BRIDGES)):
            assert offered(shell, f"kvmsup {verb} ") == expected
        assert offered(shell, "kvmsup topology --") == set(options(VERBS["topology"]))


def synopsis() -> dict[str, str]:
    lines = re.findall(r"^\| \*\*kvmsup\*\* \*\*([a-z-]+)\*\*(.*)$", PAGE, re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return {verb: rest for verb, rest in lines if not verb.startswith("--")}


def commands() -> dict[str, str]:
    """What COMMANDS says of each verb."""
    part = PAGE.partition("\nCOMMANDS\n")[2].partition("\nEXIT STATUS\n")[0]
    found = re.split(r"^\*\*kvmsup ([a-z-]+)\*\*", part, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_the_man_page_has_the_verbs() -> None:
    assert set(synopsis()) == set(commands()) == set(VERBS)
    assert "| **kvmsup** **--version** | **--help**\n" in PAGE


@pytest.mark.parametrize("verb", VERBS)
def test_the_man_page_has_the_options(verb: str) -> None:
    """SYNOPSIS has all, but for [OPTION ...], and COMMANDS describes each but --json, which has a section."""
    wanted = set(options(VERBS[verb])) - {"--help"}
    named, described = (set(re.findall(r"\*\*(--[a-z-]+)\*\*", text)) for text in (synopsis()[verb], commands()[verb]))
    assert "--json" in named
    assert named <= wanted
    if "[*OPTION* ...]" not in synopsis()[verb]:
        assert named == wanted
    terms = re.findall(r"^    (\*\*--.*)$", commands()[verb], re.MULTILINE)
    assert {name for term in terms for name in re.findall(r"\*\*(--[a-z-]+)\*\*", term)} == wanted - {"--json"}
    assert described <= wanted | {"--json"}
