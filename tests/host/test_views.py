# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person and a program are shown of a host with a guest: every verb's JSON, watching, and what that costs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests import schema
from tests.host import guests
from tests.lab.host import Host

TWO = {"web": guests.TINY, "db": guests.SHARED, "down": guests.SHARED, "broken": "["}


@pytest.fixture(scope="module")
def two(host: Host) -> Iterator[Host]:
    """A host with two guests that run, one that is down, and a file that is wrong."""
    guests.keep_supervisor(host)
    guests.configure(host, TWO)
    for name in ("web", "db"):
        guests.start(host, name)
    yield host
    guests.clear(host)


def test_the_schemas_are_installed(host: Host) -> None:
    names = host.run("ls /usr/share/kvmsup/schema").stdout.split()
    assert sorted(names) == sorted(path.name for path in schema.DIRECTORY.iterdir())
    for name in names:
        assert json.loads(host.read(f"/usr/share/kvmsup/schema/{name}")) == schema.of(name.removesuffix(".json"))


def test_modules_are_compiled_at_installation(host: Host) -> None:
    """Else each start of a program would compile what it imports, where it may not write."""
    missing = host.run(
        "cd /usr/lib/kvmsup; for f in $(find . -name '*.py'); do"
        " ls ${f%/*}/__pycache__/$(basename $f .py).cpython-*.pyc >/dev/null || echo $f; done",
        check=False,
    )
    assert missing.stdout == ""


@pytest.mark.parametrize(
    "verb",
    ["list", "status web", "status db", "status down", "status broken", "check", "check web", "plan", "plan down",
     "verify", "host", "topology", "cpu-models --accel tcg", "cpu-models --accel tcg qemu64", "console web"],
)  # fmt: skip
def test_what_a_verb_prints_for_programs_is_as_its_schema_says(two: Host, verb: str) -> None:
    assert guests.kvmsup(two, verb, check=False)


def test_the_listing_of_guests_needs_no_toml(two: Host) -> None:
    """Of what has not been edited since it was loaded; a file that is wrong is read, to say so."""
    program = (
        "import sys; sys.path.insert(0, '/usr/lib/kvmsup')\n"
        "from kvmsup import cli\ncli.main(['list'])\nprint('tomllib' in sys.modules)"
    )
    two.run("mv /etc/kvmsup/broken.toml /root")
    lines = two.run(["python3", "-IS", "-c", program]).stdout.splitlines()
    two.run("mv /root/broken.toml /etc/kvmsup")
    assert lines[-1] == "False"
    assert [line.split()[:3] for line in lines[2:-1]] == [
        ["GUEST", "STATE", "VCPUS"],
        ["db", "active", "1"],
        ["down", "inactive", "1"],
        ["web", "active", "2"],
    ]
    in_full = {one["name"]: one for one in guests.kvmsup(two, "list")["guests"]}
    assert [in_full[name]["changed"] for name in ("db", "web", "down")] == [[], [], None]
    assert in_full["broken"]["sound"] is False


def test_an_edit_is_seen_by_the_listing(two: Host) -> None:
    two.put(guests.SHARED.replace("64M", "96M").encode(), "/etc/kvmsup/db.toml")
    try:
        assert re.search(r"^db .* edited: restart$", two.run("kvmsup list").stdout, re.MULTILINE)
    finally:
        guests.configure(two, TWO)
    assert "edited" not in two.run("kvmsup list").stdout


@pytest.mark.parametrize("verb", ["list", "status web", "topology"])
def test_watching_by_a_program(two: Host, verb: str) -> None:
    """A line each time, each as the schema says."""
    command = f"kvmsup {verb} --json --interval 0.5 >/run/watched & watcher=$!; "
    command += "for i in $(seq 300); do [ $(wc -l </run/watched) -ge 3 ] && break; sleep 0.2; done; "
    two.run(command + "kill $watcher; wait $watcher; true", timeout=120)
    lines = two.read("/run/watched").splitlines()
    assert len(lines) >= 3
    for line in lines:
        schema.hold(verb.split()[0], json.loads(line))


def test_watching_on_a_terminal(two: Host) -> None:
    """One that does not know its size, as a serial line."""
    program = (
        "import os, pty, signal, sys, time\n"
        "pid, master = pty.fork()\n"
        "if not pid:\n"
        "    os.environ['TERM'] = 'xterm'\n"
        "    os.execvp('kvmsup', ['kvmsup', 'status', 'web', '--interval', '0.5'])\n"
        "shown = b''\n"
        "pressed = False\n"
        "while True:\n"
        "    if not pressed and shown.count(b'\\x1b[?2026l') >= 3:\n"
        "        pressed = os.write(master, b'q') == 1\n"
        "    try:\n"
        "        shown += os.read(master, 65536)\n"
        "    except OSError:\n"
        "        break\n"
        "sys.stdout.write(shown.decode())\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    shown = two.run(["python3", "-c", program], timeout=120).stdout
    assert shown.startswith("\x1b[?1049h") and shown.rstrip().endswith("\x1b[?1049l")
    assert "vCPU 1" in shown and "Traceback" not in shown


def test_a_guest_that_is_watched_is_not_asked(two: Host) -> None:
    """Its balloon's driver and its agent would have to wake up; where memory is holds up QEMU."""
    balloon = '[memory.balloon]\nmin = "64M"\n[guest]\nagent = true\n'
    guests.configure(two, {**TWO, "asked": guests.SHARED.replace("64M", "128M") + balloon})
    guests.start(two, "asked")
    watched = json.loads(
        two.run("kvmsup status asked --json --interval 5 | head -n 1", timeout=60).stdout.splitlines()[0]
    )
    assert (watched["balloon"]["driver"], watched["agent"]["state"], watched["resident"]) == (
        "unasked",
        "not asked",
        [],
    )
    asked = guests.kvmsup(two, "status asked")
    assert asked["balloon"]["driver"] == "silent" and asked["resident"] and asked["agent"]["state"] != "not asked"
    guests.kill(two, "asked")


def test_the_listing_says_what_systemd_says(two: Host) -> None:
    """Of guests that run, are down, are being stopped, have failed, start at boot, or have no sound file."""
    guests.configure(
        two, {**TWO, "killed": guests.SHARED, "down": 'description = "a %i \\\\ b\\\\"\n' + guests.SHARED}
    )
    guests.start(two, "killed")
    two.run("systemctl --no-reload enable kvm@web kvm@down; systemctl kill -s KILL kvm@killed")
    guests.released(two, "killed")
    # Nobody in it hears the power button.
    two.run("systemctl stop --no-block kvm@db")
    two.wait_for("systemctl show -P ActiveState kvm@db | grep -q deactivating")
    listed = {one["name"]: one for one in guests.kvmsup(two, "list")["guests"]}
    told = {"active": "ActiveState", "sub": "SubState", "result": "Result", "description": "Description"}
    for name, one in listed.items():
        shown = guests.show(two, f"kvm@{name}", *told.values(), "MainPID")
        assert {key: one[key] for key in told} == {key: shown[key_of] for key, key_of in told.items()}, name
        assert one["pid"] == (int(shown["MainPID"]) or None), name
        # UnitFileState would be as it was at the last daemon-reload.
        enabled = two.run(f"systemctl is-enabled kvm@{name}", check=False).stdout.strip()
        assert one["enabled"] == (enabled == "enabled"), name
    states = [listed[name]["active"] for name in ("web", "db", "down", "killed")]
    assert states == ["active", "deactivating", "inactive", "failed"]
    assert listed["web"]["pid"] and listed["db"]["pid"] and listed["killed"]["pid"] is None
    two.run("systemctl --no-reload disable kvm@web kvm@down; systemctl kill -s KILL kvm@db")
