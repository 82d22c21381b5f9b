# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every key's entry in its man page: type, default, unit, what it becomes and an example, held against the code.

An entry is the key in bold, a paragraph that begins with the type in italics and has the default, and at its end lines
of the form "| Unit: …" (of numbers and lists), "| Becomes: …" and "| Example: *key = value*".
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import toml

from kvmsup import cpulist, sizes
from kvmsup.errors import ConfigError
from kvmsup.model import config
from kvmsup.plan import changes, disks, nets, qemu
from tests.golden import CASES, tree
from tests.golden.test_golden import dotted, written
from tests.golden.test_units import literal

ROOT = Path(__file__).parents[2]
MAN = ROOT / "packaging/man"
GUEST_KEYS = [*dotted(config.GUEST_KEYS), "credentials.NAME"]
KEYS = [("kvmsup.guest.5.rst", key) for key in GUEST_KEYS]
KEYS += [("kvmsup.toml.5.rst", key) for key in dotted(config.HOST_KEYS)]


class Entry(NamedTuple):
    """What a man page says of one key."""

    type: str
    text: str
    unit: str
    becomes: str
    example: str


@cache
def entries(page: str) -> dict[str, Entry]:
    part = (MAN / page).read_text("utf-8").partition("\nKEYS\n")[2]
    part = re.split(r"\n(?=[A-Z ]+\n=)", part)[0]
    found = re.split(r"^\*\*([a-z][A-Za-z.-]*)\*\*\n(?=    )", part, flags=re.MULTILINE)
    texts = (re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0] for text in found[2::2])
    return {key: entry(text) for key, text in zip(found[1::2], texts, strict=True)}


def entry(text: str) -> Entry:
    told: dict[str, str] = {}
    last = ""
    for line in re.findall(r"^    \| (.*)$", text, re.MULTILINE):
        if line.startswith("    "):
            told[last] += f" {line.strip()}"
        else:
            last, _, rest = line.partition(": ")
            assert last not in told
            told[last] = rest
    assert set(told) <= {"Unit", "Becomes", "Example"}
    words = re.sub(r"\s+", " ", re.sub(r"^    \|.*\n", "", text, flags=re.MULTILINE)).strip()
    kind = re.match(r"\*([^*]+)\*", words)
    example = re.fullmatch(r"\*(.*)\*", told.get("Example", ""))
    return Entry(
        kind[1].rstrip(".") if kind else "",
        words,
        told.get("Unit", ""),
        told.get("Becomes", ""),
        example[1] if example else "",
    )


def of(page: str, key: str) -> Entry:
    assert key in entries(page), f"{page} has no entry for {key}"
    return entries(page)[key]


def test_no_entry_is_of_another_key() -> None:
    for page in dict(KEYS):
        named = {key for where, key in KEYS if where == page}
        assert set(entries(page)) == named


def value(one: Entry) -> Any:
    (found,) = leaves(tomllib.loads(one.example))
    return found


def leaves(values: Any) -> Iterator[Any]:
    """The values behind dotted names; a table whose names are numbers is a value."""
    if isinstance(values, dict) and not any(name.isdigit() for name in values):
        for one in values.values():
            yield from leaves(one)
    else:
        yield values


# What a type's first words promise of a value.
TYPES: dict[str, Callable[[Any], object]] = {
    "A string": lambda found: isinstance(found, str),
    "A whole number": lambda found: type(found) is int,
    "true": lambda found: isinstance(found, bool | str),
    "A size": lambda found: sizes.parse(found) > 0,
    "A list of": lambda found: bool(cpulist.parse(found)),
    "A table": lambda found: isinstance(found, dict) and all(map(cpulist.parse, found.values())),
    "An array of strings": lambda found: found and all(isinstance(one, str) for one in found),
    "An array of whole numbers": lambda found: found and all(type(one) is int for one in found),
}
NUMBERS = ("A whole number", "A size", "A list of", "A table", "An array of whole numbers")


@pytest.mark.parametrize(("page", "key"), KEYS)
def test_type_and_example(page: str, key: str) -> None:
    one = of(page, key)
    if choices := re.findall(r'"([^"]+)"', one.type) if one.type.startswith('"') else []:
        assert value(one) in choices
    else:
        kind = max((kind for kind in TYPES if one.type.startswith(kind)), key=len)
        assert TYPES[kind](value(one))
    assert bool(one.unit) == (one.type.startswith(NUMBERS) or key in ("memory.hugepages", "placement.scheduler"))


# What else a file needs for a key to be sound in it, by key or by table.
NEEDS = {
    "machine.initrd": 'machine.kernel = "/vmlinuz"',
    "machine.cmdline": 'machine.kernel = "/vmlinuz"',
    "cpu.vcpus": "cpu.maxcpus = 8",
    "cpu": "cpu.vcpus = 1",
    "placement.smt": 'placement.cpus = "dedicated"',
    "placement.scheduler": 'placement.cpus = "dedicated"',
    "placement.isolate": 'placement.cpus = "dedicated"',
    "placement.vcpu": "cpu.maxcpus = 2",
    "memory.balloon.auto": 'memory.balloon.min = "2G"',
    "numa.N": 'cpu.maxcpus = 8\nnuma.0.vcpus = "0-7"',
    "numa.N.memory": 'memory.size = "8G"\ncpu.maxcpus = 8\nnuma.0.vcpus = "0-7"',
    "numa.N.distances": 'cpu.maxcpus = 8\nnuma.0.vcpus = "0-3"\nnuma.1.vcpus = "4-7"',
    "disk.NAME": 'iothread.io0.cpus = "0"\ndisk.one = {path = "one.img", format = "raw", size = "1G"}',
    "disk.NAME.read-only": 'disk.one = {path = "one.img", format = "raw", base = "/srv/base"}',
    "disk.NAME.base-format": 'disk.one = {path = "one.img", format = "raw", base = "/srv/base"}',
    "net.NAME": 'net.one.bridge = "br0"',
    "net.NAME.queues": 'cpu.maxcpus = 8\nnet.one.bridge = "br0"',
    **dict.fromkeys((f"net.NAME.{kind}" for kind in ("bridge", "macvtap", "tap", "user")), ""),
}


def read(key: str, line: str) -> dict[str, changes.Value]:
    """The keys of a guest whose file has that line of the key's table, and what it needs. Raises ConfigError."""
    table = key.rpartition(".")[0]
    values: dict[str, Any] = tomllib.loads('memory.size = "64G"')
    merge(values, tomllib.loads(NEEDS.get(key, NEEDS.get(table, ""))))
    own: dict[str, Any] = tomllib.loads(line)
    for part in reversed(table.split(".") if table else ()):
        number_or_name = {"N": "0", "NAME": "io0" if table.startswith("iothread") else "one"}
        own = {number_or_name.get(part, part): own}
    merge(values, own)
    return changes.flatten(config.read_guest("web", "web.toml", toml.dumps(values).encode()).guest)


def merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for name, one in more.items():
        if isinstance(one, dict) and isinstance(values.get(name), dict):
            merge(values[name], one)
        else:
            values[name] = one


@pytest.mark.parametrize("key", GUEST_KEYS)
def test_example_is_sound_and_no_default(key: str) -> None:
    """It would be a poor example that changes nothing."""
    one = of("kvmsup.guest.5.rst", key)
    assert read(key, one.example)
    if "Must be there" not in one.text and NEEDS.get(key) != "":
        assert read(key, "") != read(key, one.example) or key in ("machine.accel", "numa.N.memory")


@pytest.mark.parametrize("key", GUEST_KEYS)
def test_default(key: str) -> None:
    """A key without one must be there; one that is a value is that of a file without the key."""
    one = of("kvmsup.guest.5.rst", key)
    assert ("Default: " in one.text) != ("Must be there" in one.text)
    name = key.rpartition(".")[2]
    if "Must be there" in one.text:
        needs = NEEDS.get(key, NEEDS.get(key.rpartition(".")[0], ""))
        assert name in needs or missing(key)
    elif told := re.search(r'Default: ("[^"]*"|\d+|true|false)[.,;]', one.text):
        assert read(key, f"{name} = {told[1]}") == read(key, "")


def missing(key: str) -> bool:
    """Whether a file in which only that key's table is there is refused."""
    table, _, name = key.rpartition(".")
    values: dict[str, Any] = {} if table == "memory" else {"memory": {"size": "64G"}}
    merge(values, tomllib.loads(f"[{table.replace('.NAME', '.one').replace('.N', '.0')}]"))
    with pytest.raises(ConfigError) as caught:
        config.read_guest("web", "web.toml", toml.dumps(values).encode())
    return f"{name} is missing" in str(caught.value)


def test_host_defaults() -> None:
    assert 'Default: "pressure"' in of("kvmsup.toml.5.rst", "ksm.policy").text
    assert config.read_host("kvmsup.toml", b"").ksm == "pressure"
    assert "Default: " in of("kvmsup.toml.5.rst", "cpu.housekeeping").text


class Made(NamedTuple):
    """What a golden guest's file became: its drop-ins, QEMU's options, and the commands that plug in more."""

    keys: frozenset[str]
    units: str
    options: tuple[str, ...]
    commands: tuple[str, ...]


@cache
def made() -> list[Made]:
    sound = [case for case in CASES if not (case / "expected/stderr").exists()]
    return [guest_of(case, path) for case in sound for path in sorted(case.glob("etc/kvmsup/[a-z]*.toml"))]


def guest_of(case: Path, path: Path) -> Made:
    keys = set(written(tomllib.loads(path.read_text("utf-8"))))
    if "credentials" in keys:
        keys.add("credentials.NAME")
    host = case / "etc/kvmsup.toml"
    keys |= {f"/{key}" for key in written(tomllib.loads(host.read_text("utf-8")))} if host.exists() else set()
    guest = config.read_guest(path.stem, path.name, path.read_bytes()).guest
    drop_ins = (text for name, text in tree(case / "expected").items() if f"@{path.stem}.service.d/" in name)
    options = tuple(" ".join(flat(literal(word)) for word in option) for option in qemu.options(guest))
    plugs = [*disks.plugs(guest), *nets.plugs(guest)]
    commands = tuple(f"{one.name} {pairs(one.arguments)}" for plug in plugs for one in plug.commands)
    return Made(frozenset(keys), "".join(drop_ins), options, commands)


def flat(word: str) -> str:
    """A value in JSON as name=value pairs, which QEMU takes as well."""
    return pairs(json.loads(word)) if word.startswith("{") else word


def pairs(values: Any, prefix: str = "") -> str:
    if not isinstance(values, dict):
        return f"{prefix}={values if isinstance(values, str) else json.dumps(values)}"
    return ",".join(pairs(value, f"{prefix}.{name}" if prefix else name) for name, value in values.items())


def pattern(told: str) -> re.Pattern[str]:
    """What the page tells as an expression: "..." is anything, a word in capitals some value."""
    words = re.sub(r"\\\.\\\.\\\.", ".*", re.escape(told))
    return re.compile(re.sub(r"\b(?!VGA)[A-Z]+\b", ".+", words) + ("" if " " in told else "( .*)?"), re.DOTALL)


CODE = "".join(path.read_text("utf-8") for path in sorted((ROOT / "kvmsup").rglob("*.py")))


@pytest.mark.parametrize(("page", "key"), KEYS)
def test_what_it_becomes_is_in_a_golden(page: str, key: str) -> None:
    one = of(page, key)
    assert re.search(r"\b(QEMU|QMP|unit|kernel)\b", one.becomes)
    having = [guest for guest in made() if (key if page == "kvmsup.guest.5.rst" else f"/{key}") in guest.keys]
    # Bold is another page or unit, and what is "of" one is no directive of the guest's.
    own = re.sub(r"(\*[^*]+\* of )?\*\*[^*]+\*\*", "", one.becomes)
    for item in re.split(r"[;.] ", own):
        for told in re.findall(r"\*([^*]+)\*", item):
            assert is_there(told, item, having), f"{key}: {told} is in no golden of a guest that has the key"


def is_there(told: str, item: str, having: list[Made]) -> bool:
    if told.startswith("-"):
        return any(pattern(told).fullmatch(option) for guest in having for option in guest.options)
    if re.match(r"[A-Z][A-Za-z]+=", told):
        line = re.compile(rf"^{pattern(told).pattern}", re.MULTILINE)
        return any(line.search(guest.units) for guest in having)
    if told.startswith("qemu-img "):
        return f'"{told.removeprefix("qemu-img ")}"' in CODE
    if "QMP" in item:
        commands = [command for guest in having for command in guest.commands]
        return any(map(pattern(told).fullmatch, commands)) or (" " not in told and f'"{told}"' in CODE)
    return told.startswith("/") or "kernel" in item
