# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML's [net.NAME] → the guest's network interfaces, with the names and addresses that derive from theirs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from kvmsup.model.guest import Cpu, Guest, Net
from kvmsup.model.table import Problem, Table
from kvmsup.records import NamedTuple

BRIDGE, MACVTAP, TAP, USER = KINDS = ("bridge", "macvtap", "tap", "user")
# drivers/net/tun.c and tap.c: MAX_TAP_QUEUES.
MOST_QUEUES = 256
# Interfaces that there are places for (plan/ports.py): NIC_SLOTS, by the functions of a slot.
PCIE_ROOM, PCI_ROOM = 32, 4
# include/uapi/linux/if.h: IFNAMSIZ, with the zero at the end.
LONGEST_LINK = 15
NAME_RULE = "a lower-case letter, then up to 14 lower-case letters, digits and dashes"
_NAME = r"[a-z][a-z0-9-]{0,14}"
# Less than the kernel allows (dev_valid_name): it goes into units and claims as it is.
_LINK = rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{LONGEST_LINK - 1}}}"
_MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
_EXAMPLES = {BRIDGE: '"br0"', MACVTAP: '"eth0"', TAP: '"tap0"'}
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
# The first byte of a tap's own address (effects/taps.py).
HOSTS_END = "fe"


class _Backing(NamedTuple):
    kind: str
    over: str


def read(table: Table, keys: tuple[str, ...], guest: str, cpu: Cpu, *, pcie: bool) -> tuple[Net, ...]:
    """The interfaces of the guest called `guest`, in the order of the file."""
    found = tuple(_nets(table, keys, guest, cpu))
    room = PCIE_ROOM if pcie else PCI_ROOM
    for net in found[room : room + 1]:
        what = f"there is no room on the machine for more than {room}"
        table.note(net.name, what, "" if pcie else "a machine type such as pc-q35-7.2 has more", at_key=True)
    _check_apart(table, found)
    _check_sandbox(table, found)
    return found


def _nets(table: Table, keys: tuple[str, ...], guest: str, cpu: Cpu) -> Iterator[Net]:
    for name in table:
        if not re.fullmatch(_NAME, name):
            table.note(name, "not a name for a network interface", NAME_RULE, at_key=True)
            continue
        one = table.table(name, keys)
        kind, over = _backing(one)
        mac, queues = _mac(one, guest, name), _queues(one, kind, cpu)
        yield Net(name, kind, over, link(kind, over, guest, name), mac, queues, one.integer("boot", 1, 255) or 0)


def _backing(table: Table) -> _Backing:
    """What the interface is connected to: of the four keys exactly one says so."""
    user = table.boolean(USER, False)
    if USER in table and not user:
        table.note(USER, "false says nothing", 'leave it out, and name a bridge: bridge = "br0"')
        return _Backing(USER, "")
    there = [kind for kind in KINDS if kind in table]
    if not there:
        what = "is connected to nothing"
        table.note("", what, 'one of bridge = "br0", macvtap = "eth0", tap = "tap0", user = true')
        return _Backing("", "")
    for other in there[1:]:
        table.note(
            other,
            f"is there beside {there[0]}",
            "an interface is connected to one thing: leave out the other",
            at_key=True,
        )
    kind = there[0]
    return _Backing(kind, "" if kind == USER else _over(table, kind))


def _over(table: Table, kind: str) -> str:
    """The name of the host's interface."""
    name = table.text(kind, "", _EXAMPLES[kind])
    if not re.fullmatch(_LINK, name) and kind in table:
        rule = f"up to {LONGEST_LINK} letters, digits, and . _ - inside; ip link shows those there are"
        table.note(kind, f'"{name}" is not a name of a network interface', rule)
        return ""
    return name


def _mac(table: Table, guest: str, name: str) -> str:
    """The address that the guest sees, in lower case: its own, or one that derives from the names."""
    text = table.text("mac", "", '"52:54:00:12:34:56"')
    if not text:
        if table.values.get("mac") == "":
            table.note("mac", "is empty", "leave it out for one that derives from the names")
        return derived_mac(guest, name)
    if not re.fullmatch(_MAC, text):
        table.note("mac", f'"{text}" is not a MAC address', 'six bytes in hexadecimal: mac = "52:54:00:12:34:56"')
        return derived_mac(guest, name)
    mac = text.lower()
    if int(mac[:2], 16) & 1:
        first = f"{int(mac[:2], 16) & 0xFE:02x}"
        unicast = f"{'52' if first == HOSTS_END else first}{mac[2:]}"
        table.note("mac", f"{mac} is the address of a group", f'the first byte is even: mac = "{unicast}"')
    elif mac == "00:00:00:00:00:00":
        table.note("mac", "nobody has the address of zeros", "leave it out for one that derives from the names")
    elif mac.startswith(HOSTS_END):
        table.note("mac", f"{mac} is what the host's own end of a tap has", "choose another first byte, such as 52")
    return mac


def _queues(table: Table, kind: str, cpu: Cpu) -> int:
    queues = table.integer("queues", 1, MOST_QUEUES) or 1
    if kind == USER and queues > 1:
        table.note("queues", "a user network has one queue", "leave it out, or use a bridge")
    elif queues > cpu.maxcpus:
        what = f"{queues} queues for {cpu.maxcpus} vCPU{'s' if cpu.maxcpus > 1 else ''}"
        hint = "a guest uses one for each of its vCPUs at the most"
        table.note("queues", what, hint, severity="warning")
    return queues


def _check_apart(table: Table, nets: tuple[Net, ...]) -> None:
    """Note what two interfaces of one guest cannot both have."""
    macs: dict[str, str] = {}
    links: dict[str, str] = {}
    boots: dict[int, str] = {}
    for net in nets:
        path = (*table.path, net.name)
        if (other := macs.setdefault(net.mac, net.name)) != net.name:
            table.document.note((*path, "mac"), f"net.{other} has the address {net.mac} already", "one each")
        if net.link and (other := links.setdefault(net.link, net.name)) != net.name:
            would = "" if net.kind == TAP else f"its end on the host would be {net.link}: "
            table.document.note((*path, net.kind), f"{would}net.{other} has {net.link} already", "one each")
        if net.boot and (other := boots.setdefault(net.boot, net.name)) != net.name:
            table.document.note((*path, "boot"), f"net.{other} has boot = {net.boot} already", "number them 1, 2, …")


def _check_sandbox(table: Table, nets: tuple[Net, ...]) -> None:
    """A macvtap link lives in QEMU's own network namespace, and ends with it; a user network is in the host's."""
    kinds = [net.kind for net in nets]
    for net in nets:
        if net.kind == MACVTAP and USER in kinds:
            hint = "a bridge instead of one of them"
            table.note(net.name, "a guest with a user network can have no macvtap", hint, at_key=True)


def doubles(guest: Guest, others: Iterable[Guest]) -> Iterator[Problem]:
    """A warning for each address and tap of `guest` that another guest's file has too: only one of them can run."""
    theirs = [(other.name, net) for other in others if other.name != guest.name for net in other.nets]
    addresses = {net.mac: f"net.{net.name} of guest {name}" for name, net in theirs}
    taps = {net.over: f"net.{net.name} of guest {name}" for name, net in theirs if net.kind == TAP}
    for net in guest.nets:
        if net.mac in addresses:
            what = f"{net.mac} is the address of {addresses[net.mac]} too: only one of them can run"
            yield Problem(
                ("net", net.name, "mac"), what, "leave it out for one that derives from the names", False, "warning"
            )
        if net.kind == TAP and net.over in taps:
            what = f"{net.over} is the tap of {taps[net.over]} too: only one of them can run"
            yield Problem(("net", net.name, TAP), what, "name another one", False, "warning")


def link(kind: str, over: str, guest: str, name: str) -> str:
    """The host's end of the interface `name` of `guest`; "" where it has none.

    GUEST.NET, or where that is too long a hash of it for NET: guests of one beginning must not meet. There is a dot in
    all of them, by which units/80-kvmsup-tap.link knows them.
    """
    if kind == TAP:
        return over
    if kind == USER:
        return ""
    full = f"{guest}.{name}"
    if len(full) <= LONGEST_LINK:
        return full
    hashed = _hash(full)
    digits = "".join(_DIGITS[hashed >> shift & 31] for shift in range(0, 30, 5))
    return f"{guest[: LONGEST_LINK - 7].rstrip('-')}.{digits}"


def derived_mac(guest: str, name: str) -> str:
    """A unicast address from the locally administered half, with 40 bits of a hash of both names.

    With 24, as below 52:54:00, two of 1000 interfaces on one network would be the same 3 times in 100.
    """
    hashed = _hash(f"{guest}/{name}")
    return ":".join(("02", *(f"{hashed >> shift & 0xFF:02x}" for shift in (32, 24, 16, 8, 0))))


def _hash(text: str) -> int:
    """FNV-1a, 64 bits folded to 40; the generator runs at each daemon-reload, and hashlib loads OpenSSL."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return (value >> 40 ^ value) & (1 << 40) - 1
