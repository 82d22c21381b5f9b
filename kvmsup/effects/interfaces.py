# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network interfaces of guests as the host's kernel has them, beside what their claims and files say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kvmsup.effects import files, rtnetlink, taps
from kvmsup.effects.rtnetlink import Link
from kvmsup.model import nets
from kvmsup.model.claim import Claim, Interface
from kvmsup.model.guest import Guest, Net
from kvmsup.model.table import Problem
from kvmsup.records import NamedTuple


class Traffic(NamedTuple):
    """What has gone through an interface, as the guest sees it."""

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int


class Seen(NamedTuple):
    """One interface of a running guest. `wrong` says what is not as it was made, "" where all is."""

    name: str
    kind: str
    mac: str
    link: str
    over: str
    state: str  # up | no carrier | down | "" where the kernel does not tell
    traffic: Traffic | None
    wrong: str


def of_guest(root: str, claim: Claim, pid: int) -> list[Seen]:
    """The interfaces of the guest of `claim`, whose QEMU is `pid`. Raises HostError."""
    return [_seen(root, one, pid) for one in claim.nets]


def _seen(root: str, one: Interface, pid: int) -> Seen:
    state, traffic, wrong = "", None, ""
    if one.kind == nets.MACVTAP:
        there = _in_namespace(root, pid)
        traffic = there.get(one.link) if there else None
        state = "up" if traffic else ""
        wrong = f"{one.link} is gone, with {one.over}" if there and not traffic else ""
    elif one.link:
        found = rtnetlink.find(one.link)
        state, wrong = found.state if found else "", _wrong(one, found)
        # What the host's end sends is what the guest receives.
        traffic = Traffic(*found.sent, *found.received) if found else None
    return Seen(one.name, one.kind, one.mac, one.link, one.over, state, traffic, wrong)


def _wrong(one: Interface, found: Link | None) -> str:
    if found is None:
        return f"{one.link} is gone"
    if one.kind != nets.BRIDGE:
        return ""
    bridge = rtnetlink.find(index=found.master) if found.master else None
    if bridge is None:
        return f"{one.link} is in no bridge"
    return "" if bridge.name == one.over else f"{one.link} is in {bridge.name}"


def _in_namespace(root: str, pid: int) -> dict[str, Traffic]:
    """The counters of links in the network namespace of `pid` (proc(5), /proc/net/dev); none if not told."""
    found = {}
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in files.read(f"{root}/proc/{pid}/net/dev").splitlines()[2:]:
            name, _, counted = line.partition(":")
            told = counted.split()
            found[name.strip()] = Traffic(*(int(told[column]) for column in (0, 1, 8, 9)))
    return found


def problems(guest: Guest) -> Iterator[Problem]:
    """What a start of `guest` would fail for now: bridges and others may still come. Raises HostError."""
    for net in guest.nets:
        if net.over:
            what, hint = _missing(net)
            if what:
                yield Problem(("net", net.name, net.kind), what, hint, False, "warning")


def _missing(net: Net) -> tuple[str, str]:
    found = rtnetlink.find(net.over)
    if found is None:
        hint = "make it, see kvmsup.guest(5), or correct the name; a start waits 90 seconds for it"
        return f"this host has no interface {net.over}", hint
    if net.kind == nets.BRIDGE and found.kind != "bridge":
        return f"{net.over} is no bridge: it is {taps.told(found)}", f'macvtap = "{net.over}" puts the guest beside it'
    if net.kind == nets.TAP and not (found.tun and found.tun.tap):
        return f"{net.over} is no tap: it is {taps.told(found)}", "ip tuntap add tap0 mode tap makes one"
    return "", ""
