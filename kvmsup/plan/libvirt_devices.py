# SPDX-License-Identifier: LGPL-2.1-or-later
"""The consoles, screen and agent of a libvirt domain → [guest], [console] and [display]; pure."""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_xml import Node, short

_AGENT = "org.qemu.guest_agent.0"
_SCREENS = ("vnc", "spice")


def read(domain: Node) -> Iterator[Section]:
    """The tables that are not as in every guest."""
    devices = domain.at("devices")
    if _agent(devices):
        yield Section("guest", "", {"agent": True})
    if _serial(devices):
        told = "`kvmsup console` joins ttyS0, as `virsh console` did. Without this key it is in the journal instead."
        yield Section("console", told, {"serial": "interactive"})
    if _screen(devices):
        yield Section("display", "", {"vnc": True})
    for node in devices.all("rng"):
        model = node.at("backend")
        node.passed()
        if model.attribute("model") not in ("", "random", "builtin"):
            node.changed("random numbers are the host kernel's own")


def _agent(devices: Node) -> bool:
    found = False
    for node in devices.all("channel"):
        if node.at("target").attribute("name") == _AGENT and node.attribute("type") in ("", "unix"):
            node.passed()
            found = True
        else:
            node.lost("there is a channel to a guest agent, guest.agent, and no other")
    return found


def _serial(devices: Node) -> bool:
    """Whether `virsh console` ended at ttyS0. What else libvirt connects it to, and further ones, are dropped."""
    serials, consoles = devices.all("serial"), devices.all("console")
    first = next((node for node in serials if node.attribute("type") == "pty"), None)
    virtual = [node for node in consoles if node.at("target").attribute("type") == "virtio"]
    ours = [*([first] if first else []), *consoles[:1]]
    for node in (*serials, *consoles):
        if any(node is one for one in ours) and node.attribute("type") in ("", "pty"):
            node.passed()
        else:
            node.lost("a guest has ttyS0 and hvc0, one in the journal and one for `kvmsup console`: console.serial")
    return (first is not None or bool(consoles)) and not virtual


def _screen(devices: Node) -> bool:
    screens = devices.all("graphics")
    kinds = [node.attribute("type") for node in screens]
    wanted = any(kind in _SCREENS for kind in kinds)
    first = True
    for node, kind in zip(screens, kinds, strict=True):
        if kind == "vnc" and first:
            first = False
            for name in ("port", "autoport", "listen", "keymap", "sharePolicy", "socket", "websocket"):
                node.attribute(name)
            node.changed("VNC is on a socket for root: `kvmsup status` says how to reach it")
            for listen in node.all("listen"):
                listen.passed()
        elif kind == "spice" and "vnc" not in kinds:
            node.passed()
            node.changed("there is no SPICE; the screen is there by VNC, on a socket for root: display.vnc")
        else:
            node.lost("the screen is there by VNC, on a socket for root: display.vnc")
    if wanted:
        _cards(devices)
    return wanted


def _cards(devices: Node) -> None:
    for node in devices.all("video"):
        model = node.at("model")
        kind = model.attribute("type")
        node.passed()
        if kind not in ("", "vga", "none"):
            model.changed(f"{short(kind, 20)} becomes plain VGA, which everything draws on", "/@type")
    for node in devices.all("input"):
        if node.attribute("type") in ("tablet", "mouse", "keyboard"):
            node.passed()
