# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network interfaces of a libvirt domain → [net.NAME]; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmsup.model import nets
from kvmsup.model.nets import BRIDGE, MACVTAP, TAP, USER
from kvmsup.plan import libvirt_boot
from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_boot import Device
from kvmsup.plan.libvirt_values import whole
from kvmsup.plan.libvirt_xml import Node, short
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_LINK = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}"
_MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"
# What libvirt calls the host's end of an interface by itself.
_ITS_OWN = r"(vnet|macvtap|macvlan)[0-9]+"
_ELSEWHERE = {
    "hostdev": "devices of the host (VFIO, SR-IOV) cannot be passed through: not built",
    "vhostuser": "vhost-user is not built",
    "vdpa": "vDPA is not built",
    "internal": 'is inside of libvirt; bridge = "…" is a network of guests alone, too',
    "mcast": 'sockets between QEMUs are not built; bridge = "…" is a network of guests alone',
    "server": 'sockets between QEMUs are not built; bridge = "…" is a network of guests alone',
    "client": 'sockets between QEMUs are not built; bridge = "…" is a network of guests alone',
    "udp": 'sockets between QEMUs are not built; bridge = "…" is a network of guests alone',
    "null": "an interface is connected to something",
    "vds": "for VMware",
}


class Backing(NamedTuple):
    """What an interface is connected to; `why` it is for somebody to complete, "" where it is whole."""

    values: dict[str, Any]
    why: str = ""


def read(domain: Node, *, pcie: bool, kernel: bool) -> Iterator[Device]:
    """The tables, in the order of the XML: those that lack what only another file says, as comments."""
    found = domain.at("devices").all("interface")
    macvtap = any(node.attribute("type") == "direct" for node in found)
    room = nets.PCIE_ROOM if pcie else nets.PCI_ROOM
    macs: set[str] = set()
    links: set[str] = set()
    for number, node in enumerate(found):
        backing = _backing(node, macvtap=macvtap)
        if not backing:
            continue
        link = backing.values.get(TAP, "")
        if room == 0 or link in links:
            node.lost("there is no room for it on the machine" if room == 0 else "another interface has its tap")
            continue
        room -= 0 if backing.why else 1
        links |= {link} if link else set()
        values = backing.values | _mac(node, macs) | _queues(node, backing)
        order = libvirt_boot.order(node, kernel=kernel)
        _model(node)
        if backing.why:
            node.part_lost("", backing.why)
        section = Section(f"net.net{number}", _short(backing.why), values, there=not backing.why)
        yield Device(section, libvirt_boot.NETWORK, 0 if backing.why else order)


def _short(why: str) -> str:
    return f"Not connected so far: {why}" if why else ""


def _backing(node: Node, *, macvtap: bool) -> Backing | None:
    kind, source = node.attribute("type"), node.at("source")
    target = node.at("target")
    device = target.attribute("dev")
    if kind == "ethernet":
        target.attribute("managed")
        if re.fullmatch(_LINK, device):
            return Backing({TAP: device})
        node.lost('libvirt made its tap and whoever asked for it connected that; bridge = "…", or tap = "…"')
        return None
    if device and not re.fullmatch(_ITS_OWN, device):
        target.part_lost("/@dev", "the host's end is called GUEST.NAME, after the guest and the table")
    if kind in (BRIDGE, "network", "direct"):
        return _on_host(node, kind, source)
    if kind == USER and not macvtap:
        return Backing({USER: True})
    node.lost(
        "a guest with a macvtap can have no user network"
        if kind == USER
        else _ELSEWHERE.get(kind, "is no kind of interface that there is here")
    )
    return None


def _on_host(node: Node, kind: str, source: Node) -> Backing | None:
    port = node.at("virtualport")
    bridge, network, parent = (source.attribute(name) for name in ("bridge", "network", "dev"))
    mode = source.attribute("mode")
    if port.there:
        if port.attribute("type") == "openvswitch":
            node.lost('Open vSwitch knows ports by name: make one with a persistent tap, and tap = "…"')
            return None
        port.lost("switches with a protocol of their own (802.1Qbg, Qbh) and midonet are not built")
    if re.fullmatch(_LINK, bridge):
        return Backing({BRIDGE: bridge})
    if kind == "direct" and re.fullmatch(_LINK, parent):
        if mode != "bridge":
            source.changed("guests on one interface reach each other (mode bridge)", "/@mode")
        return Backing({MACVTAP: parent})
    if kind == "network":
        name = short(network, 60)
        why = f'which bridge libvirt\'s network "{name}" has is in another file: virsh net-info {name}'
        return Backing({BRIDGE: "virbr0" if network == "default" else "br0"}, why)
    node.lost("names no interface of the host that there can be")
    return None


def _mac(node: Node, macs: set[str]) -> dict[str, str]:
    address = node.at("mac")
    mac = address.attribute("address").lower()
    if not mac:
        return {}
    usable = re.fullmatch(_MAC, mac) and not int(mac[:2], 16) & 1 and mac != "00:00:00:00:00:00"
    if not usable or mac.startswith(nets.HOSTS_END) or mac in macs:
        address.lost("is an address of a group, of the host's end of a tap, or of another interface: one is derived")
        return {}
    macs.add(mac)
    return {"mac": mac}


def _queues(node: Node, backing: Backing) -> dict[str, int]:
    driver = node.at("driver")
    text = driver.attribute("queues")
    queues = whole(text, 1, nets.MOST_QUEUES)
    if text and (not queues or USER in backing.values):
        driver.part_lost("/@queues", f"1 to {nets.MOST_QUEUES} on the host's network, 1 on a user network")
        return {}
    name = driver.attribute("name")
    if name not in ("", "vhost"):
        driver.part_lost("/@name", "the kernel moves the packets (vhost-net)")
    return {"queues": queues} if queues and queues > 1 else {}


def _model(node: Node) -> None:
    model = node.at("model")
    kind = model.attribute("type")
    if kind not in ("", "virtio", "virtio-non-transitional", "virtio-transitional"):
        told = "a system without its driver, such as Windows, does not find it"
        model.changed(f"{short(kind, 20)} becomes virtio: {told}")
