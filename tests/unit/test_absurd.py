# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that nobody means, as large as is read at all: told within a second or two, briefly, and never by a traceback.

They lie where a daemon-reload and the host's boot wait for them. The time is the processor's: others may run here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kvmsup.errors import ConfigError, KvmsupError
from kvmsup.model import config, nesting
from kvmsup.model.guest import Host
from kvmsup.model.table import Document
from kvmsup.model.topology import Topology
from kvmsup.plan import dropin, placement
from tests.unit.hosts import topology as synthetic

MOST = 256 << 10
SECONDS = 6.0  # three times what it may take, as this machine may be slow
MEMORY = '[memory]\nsize = "1G"\n'
LARGE = synthetic(32, 64, 1)


def filled(piece: str | Callable[[int], str], head: str = "", tail: str = "") -> str:
    """As much of `piece`, which may depend on its number, as fits between `head` and `tail`."""
    text, number = [], 0
    left = MOST - len(head) - len(tail)
    while left > 0:
        text.append(piece if isinstance(piece, str) else piece(number))
        left -= len(text[-1])
        number += 1
    return head + "".join(text[:-1]) + tail


def nodes(vcpus: Callable[[int], str], more: str) -> str:
    """A guest with 128 nodes."""
    rows = "".join(f'[numa.{number}]\nvcpus = "{vcpus(number)}"\n' for number in range(128))
    return f'[memory]\nsize = "128G"\n{more}\n{rows}'


PINS = "[cpu]\nvcpus = 4096\n[placement.vcpu]\n"
ABSURD = {
    "one dotted key": filled("a.", "", "a = 1\n"),
    "one dotted header": filled("a.", "[", "a]\n"),
    "dotted keys": filled(lambda number: f"k{number}.{'a.' * 1000}a = 1\n"),
    "dotted inline tables": f"{MEMORY}credentials.x = {('{' + 'a.' * 30 + 'a=') * 100}1{'}' * 100}\n",
    "nested inline tables": f"{MEMORY}credentials.x = {'{a=' * 200}'/x'{'}' * 200}\n",
    "nested arrays": f"{MEMORY}[cpu]\nfeatures = {'[' * 200}{']' * 200}\n",
    "a credential's key": f"{MEMORY}[credentials]\n{'a.' * 3000}a = '/x'\n",
    "a credential's header": f"{MEMORY}[credentials.{'a.' * 3000}a]\nx = '/x'\n",
    "unknown keys": filled(lambda number: f"a{number}=1\n"),
    "unknown keys in one line": "a={" + ",".join(f"a{number}=1" for number in range(25000)) + "}\n" + MEMORY,
    "one long key": filled("a", "", "=1\n"),
    "one long list": filled("0-8191,", f'{MEMORY}[placement]\nnodes = "', '0"\n'),
    "one long list of patterns": filled("0-8191:1/8192,", f'{MEMORY}[placement]\nemulator = "', '0"\n'),
    "pins": filled(lambda number: f'{number}="1"\n', f'{MEMORY}placement.cpus = "dedicated"\n{PINS}'),
    "pins anywhere": MEMORY + PINS + "".join(f'{number}="0-{8191 - number}"\n' for number in range(4096)),
    "dotted pins": filled(lambda number: f'placement.vcpu.{number}="1"\n', 'memory.size = "1G"\n'),
    "iothreads anywhere": filled(lambda number: f'[iothread.i{number}]\ncpus="0-{8191 - number}"\n', MEMORY),
    "nodes that share all vCPUs": nodes(lambda _: "0-4095", "[cpu]\nvcpus = 4096\nthreads = 4096"),
    "nodes and all host nodes": nodes(
        lambda number: f"{32 * number}-{32 * number + 31}", '[cpu]\nvcpus = 4096\n[placement]\nnodes = "0-8191"'
    ),
    "disks": filled(lambda number: f"[disk.a{number}]\n", MEMORY),
    "disks with iothreads": filled(
        lambda number: f'[disk.a{number}]\npath="a{number}"\nformat="raw"\niothread="x"\n',
        MEMORY + "".join(f"[iothread.i{number}]\n" for number in range(4000)),
    ),
    "features": filled(lambda number: f'"+a{number}",', f"{MEMORY}[cpu]\nfeatures = [", "]\n"),
    "distances": filled("10,", f'{MEMORY}[numa.0]\nvcpus = "0"\ndistances = [', "]\n"),
    "a description": filled("%", 'description = "', f'"\n{MEMORY}'),
    "a command line": filled("a", f'{MEMORY}[machine]\nkernel = "/x"\ncmdline = "', '"\n'),
    "quotes that end nothing": filled('\\"""\n', '"""'),
    "a quote that ends nothing": filled('\\"', '"', "..." * 20),
}


def outcome(content: bytes, topology: Topology | None) -> list[str]:
    """What is said of the file, on its way to a drop-in and to a place on the host."""
    try:
        guest = config.read_guest("web", "web.toml", content, topology).guest
        dropin.render(guest, Host(None, "never"), "/etc/kvmsup/web.toml", "0")
        if topology:
            placement.place(guest, Host(None, "never"), topology, [], dict.fromkeys(topology.nodes, 1 << 40))
    except ConfigError as error:
        return [str(found) for found in error.diagnostics]
    except KvmsupError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_file(name: str) -> None:
    # As at a start of the guest, where the host is looked at, or as in the generator, where it is not.
    topology = LARGE if any(word in name for word in ("pins", "anywhere", "nodes")) else None
    content = ABSURD[name].encode()
    assert len(content) <= MOST
    began = time.process_time()
    said = outcome(content, topology)
    assert time.process_time() - began < SECONDS
    assert said
    assert len(said) < 20 * 50
    assert all(len(found) < 2500 for found in said)


def test_more_than_anybody_reads_is_counted() -> None:
    text = MEMORY + "[cpu]\nvcpus = 1\n" + "".join(f"a{number} = 1\n" for number in range(60))
    with pytest.raises(ConfigError) as caught:
        config.read_guest("web", "web.toml", text.encode())
    said = [found.what for found in caught.value.diagnostics]
    assert "cpu: 60 findings like these, of which 50 are told" in said
    assert len(said) == 52  # and that there is no machine type


def test_an_end_comes_with_an_error_even_where_all_are_warnings() -> None:
    document = Document("web.toml", b"")
    with pytest.raises(ConfigError) as caught:
        for number in range(2000):
            document.note(("disk", f"a{number}", "cache"), "is unwise", severity="warning")
    assert [found.what for found in caught.value.diagnostics if found.severity == "error"] == [
        "not read any further after 1000 findings"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1", 0),
        ("a." * 31 + "a = 1", 0),
        ("a." * 32 + "a = 1", 1),
        ("\n\n" + "a . " * 32 + "a = 1", 3),
        ("# " + "." * 99, 0),
        (f'a = "{"." * 99}"', 0),
        (f"a = '{'.' * 99}'", 0),
        (f'a = """\n"{"." * 99}\n"""', 0),
        (f"a = '''\n'{'.' * 99}\n'''\n" + "a." * 32 + "a = 1", 4),
        (f'a = "\\"{"." * 99}"', 0),
        (f'a = "\\\\"\n{"a." * 32}a = 1', 2),
        ('"' + '".a."' * 32 + '" = 1', 1),
    ],
)
def test_dots_that_are_a_key(text: str, line: int) -> None:
    assert nesting.crowded(text) == line
