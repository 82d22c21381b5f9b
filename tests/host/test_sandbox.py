# SPDX-License-Identifier: LGPL-2.1-or-later
"""What somebody could do who has taken a guest's QEMU over: a program in its place tries, in the very unit.

QEMU's own filter (-sandbox), which comes on top, is not there for that program: it may more than QEMU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import guests
from tests.lab.host import Host

# So that the unit is delegated, and its control group its user's.
ISOLATED = '[placement]\ncpus = "dedicated"\nisolate = true\n'
OWN = '[disk.own]\npath = "own.img"\nformat = "raw"\nsize = "1M"\n'
PLUGGED = '[disk.plugged]\npath = "/srv/plugged.img"\nformat = "raw"\n'
TAP, USER = '[net.lan]\nbridge = "br0"\n', "[net.out]\nuser = true\n"
INTRUDER = "/usr/local/lib/intruder.py"
# Nobody starts or stops it as a guest's, and how it ends is what a test looks at.
IN_ITS_PLACE = """
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I {program} /run/kvmsup/guests/{name}/report {arguments}
ExecStartPost=
TimeoutStopSec=8
"""
# A socket without a file, in the host's network namespace.
ABSTRACT = "@intruder"
_LISTENER = """
import socket, time
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind("\\0intruder")
    listener.listen(9)
    time.sleep(3600)
"""
# What the sandbox leaves: the way on which create says how far it is, and, with a user network, the resolver's.
NOTIFY = "connect to /run/systemd/notify"


@pytest.fixture(scope="module")
def sandbox(host: Host) -> Host:
    """A host with a guest `other`, and what is worth trying for."""
    host.put(Path(__file__).with_name("intruder.py"), INTRUDER)
    host.run(
        "install -m 4755 /usr/bin/test /usr/local/bin/as-root; install -d -m 755 /var/lib/images; touch /dev/shm/x"
    )
    host.run("truncate -s 1M /srv/plugged.img /var/lib/images/open.img; chmod 600 /srv/plugged.img")
    host.run("cp /dev/null /etc/kvmsup.toml; ip link add br0 type bridge; modprobe af_alg", check=False)
    host.run(["systemd-run", "--unit=listener", "python3", "-c", _LISTENER])
    texts = {
        "other": guests.TINY + OWN + PLUGGED,
        "probe": guests.SHARED + ISOLATED + OWN + TAP,
        "outward": guests.SHARED + OWN + USER,
    }
    guests.configure(host, texts)
    guests.keep_supervisor(host)
    guests.start(host, "other")
    return host


def arguments(host: Host) -> str:
    """The other guest's process, and every socket with a file below /run, but for the intruders' own."""
    found = host.run("find /run -type s -not -path '/run/kvmsup/guests/[!o]*'").stdout.split()
    assert {"/run/kvmsup/guests/other/control.qmp", "/run/systemd/private", "/run/systemd/notify"} <= set(found)
    return " ".join([str(guests.pid(host, "other")), *sorted(found), ABSTRACT])


def tried_by(host: Host, name: str) -> dict[str, str]:
    """What came of each attempt in QEMU's place of guest `name`, which is left running."""
    directory = f"/run/systemd/system/kvm@{name}.service.d"
    host.run(f"mkdir -p {directory}")
    text = IN_ITS_PLACE.format(program=INTRUDER, name=name, arguments=arguments(host))
    host.put(text.encode(), f"{directory}/intruder.conf")
    host.run("systemctl daemon-reload")
    guests.start(host, name)
    return report(host, f"/run/kvmsup/guests/{name}/report")


def report(host: Host, path: str) -> dict[str, str]:
    host.wait_for(f"[ -e {path} ]", timeout=120)
    found = json.loads(host.read(path))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def tried(sandbox: Host) -> Iterator[dict[str, str]]:
    yield tried_by(sandbox, "probe")


@pytest.fixture(scope="module")
def by_root(sandbox: Host) -> dict[str, str]:
    """The same program, by root, outside."""
    sandbox.run(f"python3 -I {INTRUDER} /root/report {arguments(sandbox)}", timeout=120)
    return report(sandbox, "/root/report")


DENIED = {"ENOENT", "EACCES", "EPERM", "EROFS", "EAFNOSUPPORT", "ECONNREFUSED"}
# Files that are not there for it, such as other guests' and the host's sockets, and calls that its filters refuse.
AS_TOLD = {
    "read another guest's own disk": "ENOENT",
    "read another guest's plugged disk": "EACCES",
    "read an image that others may read": "ENOENT",
    "read another guest's claim": "ENOENT",
    "read another guest's TOML": "ENOENT",
    "read its own TOML": "ENOENT",
    "read the host's file": "EACCES",
    "read passwords": "EACCES",
    "read the host's disk": "ENOENT",
    "read another guest's memory": "ENOENT",
    "read another guest's command line": "ENOENT",
    "write memory that all share": "EROFS",
    "connect to /run/dbus/system_bus_socket": "ENOENT",
    "connect to /run/systemd/private": "ENOENT",
    "connect to /run/systemd/journal/socket": "ENOENT",
    "connect to /run/kvmsup/guests/other/control.qmp": "ENOENT",
    "a socket of AF_NETLINK": "EAFNOSUPPORT",
    "peek by a system call": "EPERM",
    "trace another guest": "EPERM",
    "take a descriptor": "EPERM",
    "signal another guest": "EPERM",
    "gain a capability": "EPERM",
    "become root": "EPERM",
    "use a set-user-ID program": "EPERM",
    "make a device": "EPERM",
    "mount": "EPERM",
    "a user namespace": "EPERM",
    "a key": "EPERM",
    "bpf": "EPERM",
    "performance counters": "EPERM",
    "a kernel module": "EPERM",
    "real time": "EPERM",
    "the clock": "EPERM",
}


def test_nothing_is_to_be_had(tried: dict[str, str]) -> None:
    assert {name: tried[name] for name in AS_TOLD} == AS_TOLD
    assert {name: told for name, told in tried.items() if told not in DENIED} == {NOTIFY: "done"}


def test_a_user_network_adds_the_network_alone(sandbox: Host) -> None:
    found = tried_by(sandbox, "outward")
    resolver = {name for name in found if name.startswith("connect to /run/systemd/resolve/")}
    # Sockets without a file belong to the network namespace, which is the host's.
    new = {"a socket of AF_INET", "a socket of AF_INET6", f"connect to {ABSTRACT}", NOTIFY}
    assert {name for name, told in found.items() if told not in DENIED} - resolver == new
    assert found["take a port"] == "EPERM"
    guests.kill(sandbox, "outward")


def test_root_can_do_each(by_root: dict[str, str], tried: dict[str, str]) -> None:
    """So what is denied is denied by the sandbox, and not for another reason."""
    assert by_root.keys() == tried.keys()
    assert not {name: by_root[name] for name in AS_TOLD if by_root[name] != "done"}.keys() - {"peek by a system call"}
    assert by_root["peek by a system call"] == "EFAULT"  # at an address that nobody has
    # Of the sockets some may have nobody behind them.
    others = {name: told for name, told in by_root.items() if name not in AS_TOLD and told != "done"}
    assert {name: told for name, told in others.items() if not name.startswith("connect to ")} == {}
    assert set(others.values()) <= {"ECONNREFUSED"}


def test_it_does_not_outlive_its_stop(sandbox: Host, tried: dict[str, str]) -> None:
    """It hears no signal and has systemd put off its SIGKILL; the program that stops it does not wait for that."""
    assert tried[NOTIFY] == "done"
    sandbox.run("systemctl stop kvm@probe", timeout=50)
    assert guests.show(sandbox, "kvm@probe", "ExecMainStatus")["ExecMainStatus"] == "9"
    assert "QEMU did not end when it was told to: it was killed" in guests.said(sandbox, "probe")
    sandbox.run("systemctl reset-failed 'kvm*'", check=False)
    guests.released(sandbox, "probe")


def test_qemu_itself_is_in_there(sandbox: Host) -> None:
    """The unit's filters, and one of QEMU's own; no privilege; and what systemd says of it all."""
    process = guests.pid(sandbox, "other")
    status = dict(line.split(":", 1) for line in sandbox.read(f"/proc/{process}/status").splitlines() if ":" in line)
    found = {name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "CapPrm")}
    assert found == {"NoNewPrivs": "1", "Seccomp": "2", **dict.fromkeys(("CapEff", "CapBnd", "CapPrm"), "0" * 16)}
    assert int(status["Uid"].split()[0]) >= 61184  # systemd's range of dynamic users
    words = sandbox.get(f"/proc/{process}/cmdline").decode().split("\0")
    denied = {
        word.partition("=")[0] for word in words[words.index("-sandbox") + 1].split(",") if word.endswith("=deny")
    }
    assert denied == {"obsolete", "elevateprivileges", "spawn", "resourcecontrol"}
    for unit, most in (("kvm@other", 5), ("kvm@probe", 8), ("kvm@outward", 12), ("kvmsup", 30)):
        told = sandbox.run(
            f"systemd-analyze security --no-pager --threshold={most} {unit} | tail -1; exit ${{PIPESTATUS[0]}}"
        )
        assert "Overall exposure level" in told.stdout
    guests.kill(sandbox, "other")
    assert guests.leftovers(sandbox) == []
