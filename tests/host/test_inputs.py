# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values from a TOML arrive in QEMU as they were written, and never as anything else."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

# It begins with a kernel of Linux, whether that comes up or not.
pytestmark = pytest.mark.linux_guests

ODD = [
    "a \"quoted\" 'word'",
    "100% %n %%i",
    "$HOME ${KVMSUP_GUEST} $$ $(id) `id`",
    "comma,accel=tcg,,end",
    "back\\slash \\n \\x41 end\\",
    "semi ; -daemonize ; colon: #hash",
    "-daemonize",
    "umlaut ü € 漢",
    " leading and trailing ",
]


def toml_string(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@pytest.fixture(scope="module")
def odd(host: Host) -> Host:
    texts = {}
    for number, value in enumerate(ODD):
        machine = f'[machine]\nkernel = "/vmlinuz"\ncmdline = {toml_string(value)}\n'
        texts[f"odd{number}"] = f"description = {toml_string(value)}\n{machine}" + guests.FIRMWARE.replace(
            "[machine]", ""
        )
    guests.configure(host, texts)
    guests.keep_supervisor(host)
    return host


@pytest.mark.parametrize("number", range(len(ODD)), ids=ODD)
def test_a_value_stays_one_value(odd: Host, number: int) -> None:
    name, value = f"odd{number}", ODD[number]
    described = guests.show(odd, f"kvm@{name}", "Description")["Description"]
    assert described == f"KVM guest {name}: {value}".strip()
    guests.start(odd, name)
    arguments = odd.get(f"/proc/{guests.pid(odd, name)}/cmdline").decode().split("\0")
    assert arguments[arguments.index("-append") + 1] == value
    assert arguments.count("-append") == 1
    assert arguments[-2:] == ["virtio-rng-pci", ""]
    guests.kill(odd, name)


@pytest.mark.parametrize(
    ("name", "line", "finding"),
    [
        (
            "newline",
            'description = "a\\n[Service]\\nUser=root"',
            "description: has a character that cannot be printed: U+000A",
        ),
        ("lacks", '[placement]\nvcpu = {0 = "64"}', "placement.vcpu.0: this host has no CPU 64"),
        ("nolist", '[placement]\nnodes = "0,x"', 'placement.nodes: "0,x" is not a list such as 0-3,8'),
        ("unknown", "[cpu]\nvcpu = 2", "cpu.vcpu: unknown key"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(host: Host, name: str, line: str, finding: str) -> None:
    guests.configure(host, {name: f"{line}\n{guests.SHARED}"})
    assert guests.start(host, name, check=False).rc == 1
    said = guests.said(host, name)
    assert f"/etc/kvmsup/{name}.toml:" in said
    assert finding in said
    assert guests.leftovers(host) == []
    assert guests.show(host, f"kvm@{name}", "User")["User"] == f"kvm-{name}"


def test_a_bad_name_is_told_and_starts_nothing(host: Host) -> None:
    host.run("systemctl stop kvmsup-reload.path")
    host.put(guests.SHARED.encode(), "/etc/kvmsup/Bad_Name.toml")
    host.run("systemctl daemon-reload")
    checked = host.run("kvmsup check Bad_Name", check=False)
    assert checked.rc == 1
    assert checked.stderr == (
        "/etc/kvmsup/Bad_Name.toml: 'Bad_Name' cannot name a guest\n"
        "  hint: a lower-case letter, then up to 26 lower-case letters, digits and dashes\n"
    )
    assert guests.start(host, "Bad_Name", check=False).rc == 1
    assert guests.leftovers(host) == []
    host.run("rm /etc/kvmsup/Bad_Name.toml")
