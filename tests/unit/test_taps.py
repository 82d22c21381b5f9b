# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taps, bridges and macvtaps of the real kernel, in network namespaces."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kvmsup.effects import handover, netns, rtnetlink, taps
from kvmsup.errors import HostError
from kvmsup.model.guest import Net
from kvmsup.plan import nets
from kvmsup.plan.plugs import BridgeTap, Command, MacVtap, OwnTap, Plug
from tests.unit import hosts, networks, real_qemu
from tests.unit.networks import Networks
from tests.unit.real_qemu import Running

MAC = "02:11:22:33:44:55"
LAN = BridgeTap("net.lan", "web.lan", "br0", MAC, "kvm@web lan", 1, vhost=False)
DIRECT = MacVtap("net.lan", "web.lan", "v1", MAC, 1, vhost=False)
TWO = "ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Networks]:
    with networks.made(tmp_path) as found:
        yield found


def opened(source: taps.Source, net: Networks) -> list[int]:
    """The descriptors, which the caller closes, after a look at what QEMU would be told to call them."""
    found = taps.opened(source, net.root, net.pid)
    assert [command.arguments["fdname"] for _, command in found] == [f"net.lan.tap{n}" for n in range(source.queues)]
    return [descriptor for descriptor, _ in found]


def close(descriptors: list[int]) -> None:
    for one in descriptors:
        os.close(one)


def refusal(source: taps.Source, net: Networks) -> str:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError) as caught:
        taps.opened(source, net.root, net.pid)
    assert sorted(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"
    assert "web.lan" not in net.links(net.pid)
    return str(caught.value)


def test_a_tap_is_in_its_bridge(net: Networks) -> None:
    net.on_host("ip link add br0 mtu 9000 type bridge; ip link set br0 up")
    (tap,) = opened(LAN, net)
    found = net.links()["web.lan"]
    assert (found["master"], found["mtu"], found["ifalias"]) == ("br0", 9000, "kvm@web lan")
    assert found["address"] == "fe:11:22:33:44:55"
    assert {"UP", "LOWER_UP"} <= set(found["flags"])
    assert found["linkinfo"]["info_data"] | {"type": "tap", "vnet_hdr": True} == found["linkinfo"]["info_data"]
    assert not found["linkinfo"]["info_data"]["persist"]
    assert found["inet6_addr_gen_mode"] == "none"
    assert net.on_host("ip -6 address show dev web.lan") == ""
    assert net.links()["br0"]["mtu"] == 9000
    close([tap])
    assert "web.lan" not in net.links()


def test_the_bridge_keeps_its_address(net: Networks) -> None:
    net.on_host("ip link add br0 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br0")
    before = net.links()["br0"]["address"]
    tap = opened(LAN, net)
    assert net.links()["br0"]["address"] == before == net.links()["v0"]["address"]
    close(tap)


def test_frames_go_through(net: Networks) -> None:
    net.on_host("ip link add br0 type bridge; ip link set br0 up; ip address add 192.0.2.1/24 dev br0")
    (tap,) = opened(LAN, net)
    frame = bytes.fromhex("ffffffffffff" + MAC.replace(":", "") + "0806" + "0001080006040001" + MAC.replace(":", ""))
    asked = bytes((192, 0, 2, 9)) + bytes(6) + bytes((192, 0, 2, 1))
    os.write(tap, bytes(10) + frame + asked)  # struct virtio_net_hdr, and an ARP request
    answered = False
    while not answered and select.select([tap], [], [], 5)[0]:
        answer = os.read(tap, 2048)[10:]
        answered = answer[12:14] == b"\x08\x06" and answer[20:22] == b"\x00\x02" and answer[28:32] == asked[-4:]
    assert answered
    close([tap])


def test_several_queues(net: Networks) -> None:
    net.on_host("ip link add br0 type bridge")
    found = opened(LAN._replace(queues=3), net)
    data = net.links()["web.lan"]["linkinfo"]["info_data"]
    assert (data["multi_queue"], data["numqueues"]) == (True, 3)
    close(found)
    assert "web.lan" not in net.links()


def test_a_name_that_is_taken_stays_the_others(net: Networks) -> None:
    net.on_host("ip link add br0 type bridge; ip tuntap add web.lan mode tap")
    expected = "the host has an interface web.lan already\n  hint: ip link delete web.lan, if nobody needs it"
    assert refusal(LAN, net) == expected
    assert net.links()["web.lan"]["linkinfo"]["info_data"]["persist"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("true", "there is no bridge br0\n  hint: kvmsup.guest(5) shows how systemd-networkd makes one"),
        (
            "ip tuntap add br0 mode tap",
            "br0 is no bridge: it is a tap\n  hint: name a bridge; the guest can be on br0",
        ),
        ("ip link add br0 type veth peer name v1", "br0 is no bridge: it is of the kind veth\n"),
    ],
    ids=["none", "tap", "veth"],
)
def test_no_bridge(made: str, said: str, net: Networks) -> None:
    net.on_host(made)
    assert refusal(LAN, net).startswith(said)
    assert "web.lan" not in net.links()


def test_an_mtu_that_no_tap_can_have(net: Networks) -> None:
    net.on_host("ip link add br0 mtu 65535 type bridge")
    assert refusal(LAN, net) == (
        "web.lan cannot have the MTU of bridge br0, 65535: mtu greater than device maximum\n"
        "  hint: ip link set br0 mtu 1500"
    )
    assert "web.lan" not in net.links()


def test_what_the_kernel_refuses_is_told_with_what_it_is_about(net: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    net.on_host("ip link add br0 type bridge")
    monkeypatch.setattr(rtnetlink, "without_ipv6", lambda: rtnetlink.integer(rtnetlink.MTU, 65535))
    with real_qemu.running() as machine, machine.connected() as monitor, pytest.raises(HostError) as caught:
        handover.plug(monitor, Plug("net.lan", LAN, ()), net.root, hosts.claim("web"))
    assert str(caught.value) == "net.lan: mtu greater than device maximum"


@pytest.mark.parametrize(("step", "left"), [("attach.tap", []), ("attach.join", [])])
def test_a_fault_leaves_no_tap(step: str, left: list[str], net: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    net.on_host("ip link add br0 type bridge")
    monkeypatch.setenv("KVMSUP_FAULT", f"{step}:error")
    assert f"injected at the step {step}" in refusal(LAN, net)
    assert [name for name in net.links() if name.startswith("web")] == left


def test_a_tap_of_the_administrator(net: Networks) -> None:
    net.on_host("ip tuntap add tap0 mode tap; ip link set tap0 up")
    tap = opened(OwnTap("net.lan", "tap0", 1, vhost=False), net)
    assert "LOWER_UP" in net.links()["tap0"]["flags"]
    expected = "tap tap0 is in use\n  hint: stop what has it open, or name another one"
    assert refusal(OwnTap("net.lan", "tap0", 1, vhost=False), net) == expected
    close(tap)
    assert "LOWER_UP" not in net.links()["tap0"]["flags"]


def test_a_tap_of_the_administrator_with_several_queues(net: Networks) -> None:
    net.on_host("ip tuntap add tap0 mode tap multi_queue")
    source = OwnTap("net.lan", "tap0", 2, vhost=False)
    found = opened(source, net)
    assert net.links()["tap0"]["linkinfo"]["info_data"]["numqueues"] == 2
    assert refusal(source, net).startswith("tap tap0 is in use\n")
    close(found)


@pytest.mark.parametrize(
    ("made", "queues", "said"),
    [
        ("true", 1, "there is no tap tap0\n  hint: ip tuntap add tap0 mode tap, or name a bridge instead"),
        ("ip tuntap add tap0 mode tun", 1, "tap0 is no tap: it is a tun\n"),
        ("ip link add tap0 type bridge", 1, "tap0 is no tap: it is of the kind bridge\n"),
        (
            "ip tuntap add tap0 mode tap",
            2,
            "tap tap0 is made for one queue, and queues = 2\n"
            "  hint: make it anew: ip tuntap add tap0 mode tap multi_queue",
        ),
        (
            "ip tuntap add tap0 mode tap multi_queue",
            1,
            "tap tap0 is made for several queues, and queues = 1\n  hint: make it anew: ip tuntap add tap0 mode tap",
        ),
    ],
    ids=["none", "tun", "bridge", "one-queue", "several-queues"],
)
def test_a_tap_that_does_not_do(made: str, queues: int, said: str, net: Networks) -> None:
    net.on_host(made)
    assert refusal(OwnTap("net.lan", "tap0", queues, vhost=False), net).startswith(said)


def macvtaps(net: Networks) -> None:
    """Skip where this kernel has none."""
    net.on_host(TWO)
    if "macvtap" not in Path("/proc/devices").read_text("utf-8"):
        pytest.skip("this kernel has no macvtap")


def test_a_macvtap_is_in_the_guests_namespace(net: Networks) -> None:
    macvtaps(net)
    found = opened(DIRECT._replace(queues=2), net)
    link = net.links(net.pid)["web.lan"]
    assert (link["address"], link["linkinfo"]["info_kind"]) == (MAC, "macvtap")
    assert link["linkinfo"]["info_data"]["mode"] == "bridge"
    assert "UP" in link["flags"]
    assert link["inet6_addr_gen_mode"] == "none"
    assert "web.lan" not in net.links()
    close(found)
    # As after an automatic restart, where systemd has kept the namespace: the old link makes room.
    close(opened(DIRECT, net))


def test_frames_go_through_a_macvtap(net: Networks) -> None:
    macvtaps(net)
    (tap,) = opened(DIRECT, net)
    net.on_host("ip address add 192.0.2.1/24 dev v0")
    frame = bytes.fromhex("ffffffffffff" + MAC.replace(":", "") + "0806" + "0001080006040001" + MAC.replace(":", ""))
    asked = bytes((192, 0, 2, 9)) + bytes(6) + bytes((192, 0, 2, 1))
    os.write(tap, bytes(10) + frame + asked)
    answered = False
    while not answered and select.select([tap], [], [], 5)[0]:
        answer = os.read(tap, 2048)[10:]
        answered = answer[12:14] == b"\x08\x06" and answer[20:22] == b"\x00\x02" and answer[28:32] == asked[-4:]
    assert answered
    close([tap])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("ip link delete v1", "there is no interface v1\n  hint: ip link shows those there are"),
        (
            "ip link add br0 type bridge; ip link set v1 master br0",
            "no macvtap can be made on v1: it is in br0\n  hint: name its bridge, or another interface",
        ),
    ],
    ids=["none", "in a bridge"],
)
def test_no_macvtap(made: str, said: str, net: Networks) -> None:
    macvtaps(net)
    net.on_host(made)
    with pytest.raises(HostError) as caught:
        taps.opened(DIRECT, net.root, net.pid)
    assert str(caught.value) == said


def test_no_macvtap_without_a_namespace(net: Networks) -> None:
    with pytest.raises(HostError) as caught:
        taps.opened(DIRECT, net.root, 1)
    assert "no network namespace of its own" in caught.value.what


def test_no_vhost(net: Networks) -> None:
    if os.path.exists("/dev/vhost-net"):
        pytest.skip("this machine has vhost-net")
    net.on_host("ip link add br0 type bridge")
    said = refusal(LAN._replace(vhost=True), net)
    assert said.endswith("/dev/vhost-net: cannot open: No such file or directory\n  hint: modprobe vhost_net")
    assert "web.lan" not in net.links()


def test_a_macvtap_ends_with_the_namespace(net: Networks) -> None:
    macvtaps(net)
    with networks.holder() as pid:
        os.makedirs(f"{net.root}/proc/{pid}/ns")
        os.symlink(f"/proc/{pid}/ns/net", f"{net.root}/proc/{pid}/ns/net")
        close([descriptor for descriptor, _ in taps.opened(DIRECT, net.root, pid)])
        found = [path for path in Path("/sys/dev/char").iterdir() if "/web.lan/macvtap/" in os.readlink(path)]
        assert len(found) == 1
    deadline = time.monotonic() + 10  # the kernel takes namespaces down in a worker of its own
    while found[0].is_symlink() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not found[0].is_symlink()


@contextlib.contextmanager
def emulated(net: Networks, machine: str, *sources: taps.Source) -> Iterator[Running]:
    """A QEMU in the guest's namespace with interfaces of the plan on `sources`, told to boot from the network."""
    wired = tuple(Net(source.id[4:], "bridge", "br0", source.link, MAC, source.queues, 1) for source in sources)
    guest = hosts.guest()._replace(nets=wired, machine=hosts.guest().machine._replace(type=machine))
    options = [f"pcie-root-port,{','.join(map('='.join, _words(place.options)))}" for place in nets.places(guest)]
    added = [word for option in options if machine == "q35" for word in ("-device", option)]
    with contextlib.ExitStack() as stack:
        private = stack.enter_context(netns.of_process(net.root, net.pid))
        with netns.inside(private):
            qemu = stack.enter_context(real_qemu.running(*added, machine=machine))
        os.makedirs(f"{net.root}/proc/{qemu.process.pid}/ns")
        os.symlink(f"/proc/{qemu.process.pid}/ns/net", f"{net.root}/proc/{qemu.process.pid}/ns/net")
        with qemu.connected() as monitor:
            for one, source in zip(nets.plugs(guest), sources, strict=True):
                handover.plug(monitor, _without_vhost(one, source), net.root, hosts.claim("web"))
            monitor.reset()
            monitor.execute("cont")
        yield qemu


def _words(options: Mapping[str, str | int]) -> Iterator[tuple[str, str]]:
    return ((key, str(value)) for key, value in options.items())


def _without_vhost(one: Plug, source: taps.Source) -> Plug:
    """Not every machine that runs tests has vhost-net."""
    netdev, device = one.commands
    left = {key: value for key, value in netdev.arguments.items() if not key.startswith("vhost")}
    return one._replace(source=source, commands=(Command("netdev_add", left), device))


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_a_guest_asks_for_an_address(machine: str, net: Networks) -> None:
    """The firmware's DHCP request is seen on the bridge, with the guest's address; nothing is left after a kill."""
    net.on_host("ip link add br0 type bridge; ip link set br0 up")
    with netns.of_process(net.root, 1) as host, netns.inside(host):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with wire, emulated(net, machine, LAN._replace(queues=2)) as qemu:
        wire.bind(("br0", 0x0800))
        wire.settimeout(60)
        frame = wire.recv(2048)
        assert (frame[6:12].hex(":"), frame[34:38]) == (MAC, struct.pack(">HH", 68, 67))
        data = net.links()["web.lan"]["linkinfo"]["info_data"]
        assert data["numqueues"] + data["numdisabled"] == 2
        qemu.process.kill()
        qemu.process.wait()
        assert "web.lan" not in net.links()


def test_two_guests_on_one_bridge(net: Networks) -> None:
    """What one sends, the other's tap gets: the bridge connects them."""
    net.on_host("ip link add br0 type bridge; ip link set br0 up")
    (listening,) = opened(LAN._replace(link="db.lan", mac="02:00:00:00:00:09"), net)
    with emulated(net, "q35", LAN):
        frame = b""
        while frame[6:12].hex(":") != MAC:  # the host sends there, too
            assert select.select([listening], [], [], 60)[0]
            frame = os.read(listening, 2048)[10:]
    close([listening])
