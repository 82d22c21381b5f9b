# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that say of themselves when they are ready, over real vsock, and an agent in a real Debian guest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from kvmsup.model import vsock
from tests.host import guest_disk, guests, talking_guest
from tests.host.talking_guest import NAME
from tests.lab.errors import LabUnavailable
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

FOLLOWER = f"""
[Unit]
Requires=kvm-ready@{NAME}.service
After=kvm-ready@{NAME}.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cp /run/kvmsup/ready/{NAME} /run/followed'
"""
DEBIAN = """
[machine]
type = "pc-q35-7.2"
[cpu]
vcpus = 2
[memory]
size = "512M"
[disk.root]
path = "/srv/deb.qcow2"
format = "qcow2"
cache = "unsafe"
[net.lan]
user = true
[guest]
ready = "unit:multi-user.target"
agent = true
"""
# Takes the vsock address that it is given from everybody else.
_HOLD = """
import fcntl, struct, sys, time
device = open("/dev/vhost-vsock", "wb")
fcntl.ioctl(device, 0x4008AF60, struct.pack("Q", int(sys.argv[1])))
open("/run/held", "w").close()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def talk(host: Host) -> Host:
    """A host on which the talking guest has come up, and a unit that follows it."""
    talking_guest.install(host)
    guests.be_patient_with(host, f"kvm-ready@{NAME}.service")
    host.put(FOLLOWER.encode(), "/run/systemd/system/follower.service")
    host.run("systemctl daemon-reload")
    assert guests.state(host, "kvmsup-listen.socket") == "inactive"
    talking_guest.up(host)
    return host


def heard(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.read(f"/run/kvmsup/ready/{NAME}"))
    return found


def test_a_unit_follows_when_the_guest_says_ready(talk: Host) -> None:
    talk.run("systemctl start --no-block follower")
    talking_guest.say(talk, 1023, "STATUS=Half of it")
    talk.wait_for(f"systemctl show -P StatusText kvm-ready@{NAME} | grep -qx 'Half of it'", timeout=60)
    talking_guest.say(talk, 1024, "READY=1")  # nobody who is root in the guest
    assert heard(talk) == {"ready": False, "status": "Half of it", "units": []}
    assert guests.state(talk, "follower") == guests.state(talk, f"kvm-ready@{NAME}") == "activating" or (
        guests.state(talk, "follower") == "inactive"
    )
    assert guests.kvmsup(talk, f"status {NAME}")["ready"]["reached"] is False
    talking_guest.say(talk, 1, "READY=1|STATUS=All of it")
    talk.wait_for("systemctl is-active follower", timeout=60)
    assert json.loads(talk.read("/run/followed")) == {"ready": True, "status": "All of it", "units": []}
    assert guests.show(talk, f"kvm-ready@{NAME}", "ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": "All of it",
    }


def test_what_was_said_long_before_counts(talk: Host) -> None:
    talk.run(f"systemctl stop follower kvm-ready@{NAME} && rm /run/followed && systemctl start follower", timeout=120)
    assert json.loads(talk.read("/run/followed"))["ready"] is True


def test_no_word_is_lost_when_the_listener_is_killed(talk: Host) -> None:
    talk.run("systemctl kill -s KILL kvmsup-listen.service", check=False)
    talking_guest.say(talk, 999, "STATUS=Once more|X_SYSTEMD_UNIT_ACTIVE=a.target")
    assert heard(talk) == {"ready": True, "status": "Once more", "units": ["a.target"]}
    assert guests.state(talk, "kvmsup-listen.socket") == "active"


def test_a_reboot_inside_is_told_and_stops_nobody(talk: Host) -> None:
    talking_guest.say(talk, 999, "X_SYSTEMD_SHUTDOWN=reboot")
    assert guests.kvmsup(talk, f"status {NAME}")["ready"] == {
        "reached": False, "wanted": "yes", "ready": False, "status": "shutting down: reboot", "units": [],
    }  # fmt: skip
    assert guests.state(talk, "follower") == "active"


def test_the_listener_has_no_rights(talk: Host) -> None:
    talking_guest.say(talk, 999, "STATUS=x")
    process = guests.show(talk, "kvmsup-listen.service", "MainPID")["MainPID"]
    status = dict(line.split(":", 1) for line in talk.read(f"/proc/{process}/status").splitlines())
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    exposure = talk.run("systemd-analyze security --no-pager kvmsup-listen.service | tail -n 1").stdout
    assert float(exposure.split(":")[1].split()[0]) <= 0.8, exposure


def test_all_goes_with_the_guest(talk: Host) -> None:
    guests.kill(talk, NAME)
    assert guests.leftovers(talk) == []
    assert talk.run("ls /run/kvmsup/ready").stdout == ""
    talk.wait_for("[ $(systemctl is-active kvmsup-listen.socket) = inactive ]", timeout=60)
    for unit in ("follower", f"kvm-ready@{NAME}"):
        assert guests.state(talk, unit) in ("inactive", "failed")


def test_an_address_that_somebody_else_has(talk: Host) -> None:
    cid = vsock.cid(NAME)
    talk.put(_HOLD.encode(), "/root/hold.py")
    talk.run(f"systemd-run --quiet --unit=hold python3 /root/hold.py {cid}")
    talk.wait_for("[ -e /run/held ]", timeout=60)
    try:
        assert guests.start(talk, NAME, check=False).rc == 1
        assert (
            f"vsock address (CID) {cid}, which belongs to this guest's name, is somebody else's on this host\n"
            "  hint: leave guest.ready out, or stop what has it (ls -l /proc/*/fd | grep vhost-vsock)\n"
        ) in guests.said(talk, NAME)
    finally:
        talk.run("systemctl stop hold; systemctl reset-failed 'kvm*'", check=False)


def test_a_guest_that_is_not_asked(talk: Host) -> None:
    guests.configure(talk, {"mute": guests.SHARED})
    assert talk.run("systemctl start kvm-ready@mute", check=False, timeout=240).rc == 1
    said = talk.run("journalctl --sync; journalctl -b -o cat -u kvm-ready@mute").stdout
    assert "mute is not told to say when it is ready: its file has no guest.ready\n" in said
    assert guests.state(talk, "kvm@mute") == "active"
    guests.kill(talk, "mute")


@pytest.fixture(scope="module")
def debian(host: Host) -> Iterator[Host]:
    """A host on which a Debian guest has started, with a disk of its own and an agent."""
    try:
        base = guest_disk.put(host)
    except LabUnavailable as error:
        pytest.skip(str(error))
    host.run(f"cp {base} /srv/deb.qcow2 && chmod 600 /srv/deb.qcow2")
    guests.configure(host, {"deb": DEBIAN})
    guests.be_patient_with(host, "kvm-ready@deb.service")
    guests.start(host, "deb")
    yield host
    guests.kill(host, "deb")


def test_a_real_systemd_says_when_it_has_reached_its_target(debian: Host) -> None:
    debian.run("systemctl start kvm-ready@deb", timeout=500)
    found = guests.kvmsup(debian, "status deb")["ready"]
    assert found["reached"] and "multi-user.target" in found["units"]


def test_its_agent_answers(debian: Host) -> None:
    answers = 'kvmsup status deb --json | grep -q \'"state": "answers"\''
    debian.wait_for(f"{answers} && kvmsup status deb | grep -q '  address '", timeout=120)
    found = guests.kvmsup(debian, "status deb")["agent"]
    assert found["system"].startswith("Debian GNU/Linux 13")
    addresses = [address for one in found["interfaces"] for address in one["addresses"]]
    assert any(address.startswith("10.0.2.") for address in addresses), addresses


def test_its_file_systems_are_frozen_for_one_command(debian: Host) -> None:
    inner = "kvmsup status deb --json >/run/meanwhile"
    told = json.loads(debian.run(f"kvmsup freeze --json deb sh -c {shlex.quote(inner)}", timeout=180).stdout)
    assert (told["status"], told["thawed"]) == (0, True)
    assert told["file_systems"] >= 1
    assert json.loads(debian.read("/run/meanwhile"))["agent"]["state"] == "frozen"
    assert guests.kvmsup(debian, "status deb")["agent"]["state"] == "answers"


def test_a_guest_left_frozen_is_thawed_and_stops(debian: Host) -> None:
    """Whoever froze it has been killed, and with it the process that would have thawed."""
    debian.run("systemd-run --quiet --unit=freezer kvmsup freeze deb sh -c 'touch /run/frozen; sleep 600'")
    debian.wait_for("[ -e /run/frozen ]", timeout=120)
    debian.run("systemctl kill --signal=KILL --kill-whom=all freezer")
    assert guests.kvmsup(debian, "status deb")["agent"]["state"] == "frozen"
    guests.stop(debian, "deb")
    assert "cutting its power" not in guests.said(debian, "deb")
