# SPDX-License-Identifier: LGPL-2.1-or-later
"""Networks on a real host: who reaches whom, what is on the host meanwhile, and that nothing of it is left."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvmsup.model import nets
from tests.host import guests
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

LAN = '[net.lan]\nbridge = "br0"\n'
BRIDGE = "ip link add br0 type bridge; ip address add 192.0.2.1/24 dev br0; ip link set br0 up"
BESIDE = """
    ip link add v0 type veth peer name v1; ip address add 198.51.100.1/24 dev v0
    ip link set v0 up; ip link set v1 up
"""
PING = "busybox ping -c 2 -w 20 {address}"


@pytest.fixture(scope="module")
def wired(host: Host) -> Host:
    """A host with a bridge, a pair of veth for macvtap, and the supervisor up."""
    guests.install_demo(host)
    guests.keep_supervisor(host)
    host.run(f"{BRIDGE}; {BESIDE}")
    return host


def linux(*addresses: str) -> str:
    """The demo's Linux, with an address for each of its interfaces."""
    told = "".join(f" demo.address={address}/24" for address in addresses)
    return guests.LINUX.replace("panic=-1", f"panic=-1{told}")


def links(host: Host, process: int = 0) -> dict[str, dict[str, Any]]:
    """Interfaces by name, of the host or in the network namespace of `process`."""
    inside = f"nsenter -t {process} -n " if process else ""
    return {one["ifname"]: one for one in json.loads(host.run(f"{inside}ip -j -d link").stdout)}


def exposure(host: Host, name: str) -> float:
    told = host.run(f"systemd-analyze security --no-pager kvm@{name} | tail -n 1").stdout
    return float(told.split(":")[1].split()[0])


def test_two_guests_and_their_host(wired: Host) -> None:
    """One has three ways out: a bridge with two queues, a macvtap, and a tap of the administrator's."""
    mine = '[net.direct]\nmacvtap = "v1"\nqueues = 2\n[net.mine]\ntap = "tap0"\n'
    # Not in the bridge: Linux answers there for any address it has, from any of its interfaces.
    wired.run("ip tuntap add tap0 mode tap; ip address add 203.0.113.1/24 dev tap0; ip link set tap0 up")
    left = linux("192.0.2.2", "198.51.100.2", "203.0.113.2") + LAN + "queues = 2\n" + mine
    guests.configure(wired, {"left": left, "right": linux("192.0.2.3") + LAN})
    wired.run("systemctl start kvm@left kvm@right", timeout=240)
    for name in ("left", "right"):
        guests.booted(wired, name)

    for address in ("192.0.2.2", "192.0.2.3", "198.51.100.2", "203.0.113.2"):
        assert " 0% packet loss" in wired.run(PING.format(address=address)).stdout
    neighbours = wired.run("ip neigh").stdout
    for address, name, net in (("192.0.2.2", "left", "lan"), ("192.0.2.3", "right", "lan")):
        assert f"{address} dev br0 lladdr {nets.derived_mac(name, net)}" in neighbours
    assert f"198.51.100.2 dev v0 lladdr {nets.derived_mac('left', 'direct')}" in neighbours
    assert " 0% packet loss" in guests.inside(wired, "left", "ping -c 2 192.0.2.3")

    found, process = links(wired), guests.pid(wired, "left")
    tap = found["left.lan"]
    assert (tap["master"], tap["ifalias"]) == ("br0", "kvm@left lan")
    assert tap["address"] == "fe" + nets.derived_mac("left", "lan")[2:]
    assert wired.run("ip -6 address show dev left.lan").stdout == ""
    assert "left.direct" in links(wired, process)
    assert "left.direct" not in found
    status = guests.kvmsup(wired, "status left")
    assert status["drift"] is False
    assert [(one["name"], one["state"], one["wrong"]) for one in status["nets"]] == [
        ("lan", "up", ""),
        ("direct", "up", ""),
        ("mine", "up", ""),
    ]
    assert status["nets"][0]["traffic"]["received_packets"] >= 4
    assert guests.kvmsup(wired, "verify")["ok"] is True
    assert exposure(wired, "left") <= 0.5

    # vhost's workers are where the emulator is: 2 + 2 + 1 queues, some of which share one.
    threads = wired.run(f"for t in /proc/{process}/task/*; do grep -H ^vhost- $t/comm; done", check=False).stdout
    assert threads.count(f"vhost-{process}") >= 3
    claim = guests.claim(wired, "left")
    assert guests.allowed(wired, process)[f"vhost-{process}"] == claim["EMULATOR_CPUS"]


def test_a_bridge_that_goes_and_a_kill(wired: Host) -> None:
    """The guest runs on, it is told what is wrong, and a kill leaves nothing; then everything is as before."""
    wired.run("ip link delete br0")
    assert guests.state(wired, "kvm@left") == guests.state(wired, "kvm@right") == "active"
    assert "left.lan is in no bridge" in wired.run("kvmsup verify left", check=False).stdout
    device = next(name for name in wired.run("ls /dev").stdout.split() if name.startswith("tap"))
    for name in ("left", "right"):
        guests.kill(wired, name)
    assert not [name for name in links(wired) if "." in name]
    wired.wait_for(f"[ ! -e /dev/{device} ]", timeout=30)
    assert "LOWER_UP" not in links(wired)["tap0"]["flags"]
    assert guests.leftovers(wired) == []
    wired.run("ip link delete tap0; rm /etc/kvmsup/left.toml")


def test_a_bridge_that_is_late(wired: Host) -> None:
    """systemd waits for it, as at boot."""
    guests.configure(wired, {"right": guests.SHARED + LAN})
    wired.run("systemctl start --no-block kvm@right")
    wired.wait_for("systemctl list-jobs | grep -q 'sys-subsystem-net-devices-br0.device.*running'")
    assert guests.state(wired, "kvm@right") == "inactive"
    wired.run(BRIDGE)
    wired.wait_for("[ $(systemctl show -P ActiveState kvm@right) = active ]", timeout=120)
    assert links(wired)["right.lan"]["master"] == "br0"
    guests.kill(wired, "right")


def test_an_automatic_restart(wired: Host) -> None:
    """With a tap and a macvtap, of which systemd may keep the namespace; the same addresses, and one of each."""
    text = guests.SHARED + LAN + '[net.direct]\nmacvtap = "v1"\n'
    guests.configure(wired, {"again": text})
    wired.run("mkdir -p /run/systemd/system/kvm@again.service.d")
    wired.put(b"[Service]\nRestart=on-failure\n", "/run/systemd/system/kvm@again.service.d/test.conf")
    wired.run("systemctl daemon-reload")
    guests.start(wired, "again")
    first = guests.pid(wired, "again")
    wired.run(f"kill -9 {first}")
    wired.wait_for(f"p=$(systemctl show -P MainPID kvm@again); [ $p != {first} ] && [ $p != 0 ]", timeout=60)
    wired.wait_for("[ $(systemctl show -P ActiveState kvm@again) = active ]", timeout=60)
    assert [name for name in links(wired) if "again" in name] == ["again.lan"]
    inside = links(wired, guests.pid(wired, "again"))
    assert inside["again.direct"]["address"] == nets.derived_mac("again", "direct")
    wired.run("rm /run/systemd/system/kvm@again.service.d/test.conf; systemctl daemon-reload")
    guests.kill(wired, "again")
    assert guests.leftovers(wired) == []


def test_what_is_refused(wired: Host) -> None:
    """Each with the whole sentence, under the guest's own unit; and nothing is left."""
    wired.run("ip tuntap add tap0 mode tap")
    lan = LAN + 'mac = "52:54:00:00:00:01"\n'
    texts = {
        "one": lan + '[net.mine]\ntap = "tap0"\n',
        "same": lan,
        "tap": '[net.mine]\ntap = "tap0"\n',
        "none": '[net.lan]\nbridge = "v0"\n',
    }
    guests.configure(wired, {name: guests.SHARED + text for name, text in texts.items()})
    guests.start(wired, "one")
    said = {
        "same": "net.lan: 52:54:00:00:00:01 is the address of net.lan of guest one too\n"
        '  hint: mac = "…" in [net.lan] gives it one of its own, or stop that guest',
        "tap": "net.mine: tap0 is the host's end of net.mine of guest one too\n"
        "  hint: name another tap, rename the interface, or stop that guest",
        "none": "net.lan: v0 is no bridge: it is of the kind veth\n"
        "  hint: name a bridge; the guest can be on v0 directly with macvtap",
    }
    for name, sentence in said.items():
        assert guests.start(wired, name, check=False).rc == 1
        assert sentence in guests.said(wired, name)
    assert wired.run("kvmsup check 2>&1 | grep -c 'only one of them can run'").stdout == "4\n"
    guests.kill(wired, "one")
    for name in texts:
        wired.run(f"rm /etc/kvmsup/{name}.toml; systemctl reset-failed 'kvm*'", check=False)
    wired.run("ip link delete tap0; systemctl daemon-reload")
    assert guests.leftovers(wired) == []


def test_a_user_network(wired: Host) -> None:
    guests.configure(wired, {"try": guests.SHARED + "[net.out]\nuser = true\n"})
    guests.start(wired, "try")
    process = guests.pid(wired, "try")
    assert wired.run(f"readlink /proc/{process}/ns/net").stdout == wired.run("readlink /proc/1/ns/net").stdout
    # 0.5, and what a user network is: the host's network, Internet sockets, no list of addresses.
    assert exposure(wired, "try") <= 1.4
    (net,) = guests.kvmsup(wired, "status try")["nets"]
    assert (net["name"], net["kind"], net["link"], net["wrong"]) == ("out", "user", "", "")
    guests.kill(wired, "try")
    assert guests.leftovers(wired) == []


def test_a_tap_keeps_its_address(wired: Host) -> None:
    """udev, whose default is to give taps another one, has looked at it and left it alone."""
    guests.configure(wired, {"right": guests.SHARED + LAN})
    guests.start(wired, "right")
    wired.run("udevadm settle")
    told = wired.run("udevadm info /sys/class/net/right.lan").stdout
    assert "ID_NET_LINK_FILE=/usr/lib/systemd/network/80-kvmsup-tap.link" in told
    assert links(wired)["right.lan"]["address"] == "fe" + nets.derived_mac("right", "lan")[2:]
    guests.kill(wired, "right")
