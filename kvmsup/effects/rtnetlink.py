# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network interfaces over rtnetlink(7), by hand: what iproute2 would do takes several processes a start.

The kernel says in a sentence why it refuses (NETLINK_EXT_ACK), which a process of iproute2 would only print.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping

from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.records import NamedTuple

# include/uapi/linux/rtnetlink.h, netlink.h and if_link.h
_NEWLINK, _DELLINK, _GETLINK, _ERROR = 16, 17, 18, 2
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _ACK_TLVS, _CAPPED = 0x1, 0x4, 0x200, 0x400, 0x200, 0x100
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
ADDRESS, NAME, MTU, PARENT, MASTER, INFO, ALIAS, STATS64, FAMILIES, NET_NS, CARRIER = (
    *(1, 3, 4, 5, 10, 18, 20, 23, 26, 28, 33),
)
_INFO_KIND, _INFO_DATA, _MACVLAN_MODE, _MACVLAN_BRIDGE = 1, 2, 1, 4
_TUN_TYPE, _TUN_PERSIST, _TUN_MULTI_QUEUE, _TUN_QUEUES = 3, 6, 7, 8
_INET6_ADDRESSES, _NO_ADDRESSES = 8, 1
_UP = 1
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_ROUTE = 0  # NETLINK_ROUTE
_LONGEST_ANSWER = 1 << 16


class Refused(HostError):
    """The kernel refused; `number` is its errno."""

    def __init__(self, number: int, said: str) -> None:
        super().__init__(said or os.strerror(number))
        self.number = number


class Tun(NamedTuple):
    """What a link of the kind tun is: a tap has frames, a tun packets. `queues` are those that somebody has open."""

    tap: bool
    persistent: bool
    multiqueue: bool
    queues: int


class Link(NamedTuple):
    """One interface; sizes in bytes, `master` the number of its bridge or 0, `kind` "" for hardware."""

    number: int  # its index
    name: str
    kind: str  # bridge | tun | macvtap | veth | openvswitch …
    address: str
    mtu: int
    master: int
    state: str  # up | no carrier | down: taps do not tell their operational state
    received: tuple[int, int]  # bytes and packets
    sent: tuple[int, int]
    tun: Tun | None


def find(name: str = "", index: int = 0) -> Link | None:
    """The interface of that name or index in this network namespace; None when there is none. Raises HostError."""
    attributes = [_attribute(NAME, name.encode() + b"\0")] if name else []
    try:
        answer = _talk(_GETLINK, 0, index, 0, attributes)
    except Refused as refused:
        if refused.number == errno.ENODEV:
            return None
        raise
    return _link(answer)


def change(index: int, *attributes: bytes, up: bool = False) -> None:
    """Change the interface; the kernel checks them all before it begins. Raises Refused."""
    _talk(_NEWLINK, _ACK, index, _UP if up else 0, attributes)


def delete(index: int) -> None:
    """Remove the interface. Raises Refused."""
    _talk(_DELLINK, _ACK, index, 0)


def create_macvtap(index: int, name: str, parent: int, mac: str, namespace: int) -> None:
    """Make a macvtap on top of `parent`, with the index `index`, in the network namespace of that descriptor.

    Raises Refused.
    """
    mode = _attribute(_INFO_DATA, _attribute(_MACVLAN_MODE, struct.pack("=I", _MACVLAN_BRIDGE)))
    info = _attribute(INFO, _attribute(_INFO_KIND, b"macvtap") + mode)
    attributes = (text(NAME, name), integer(PARENT, parent), address(mac), integer(NET_NS, namespace), info)
    _talk(_NEWLINK, _ACK | _CREATE | _EXCLUSIVE, index, 0, attributes)


def integer(kind: int, value: int) -> bytes:
    """A 32-bit attribute: MTU, MASTER, PARENT, or a descriptor as NET_NS."""
    return _attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """NAME or ALIAS."""
    return _attribute(kind, value.encode() + b"\0")


def address(mac: str) -> bytes:
    """The attribute that sets the link's own address."""
    return _attribute(ADDRESS, bytes.fromhex(mac.replace(":", "")))


def without_ipv6() -> bytes:
    """The attribute by which the host gives the link no IPv6 address of its own, and so asks for no router."""
    inet6 = _attribute(socket.AF_INET6, _attribute(_INET6_ADDRESSES, bytes((_NO_ADDRESSES,))))
    return _attribute(FAMILIES, inet6)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _talk(kind: int, flags: int, index: int, up: int, attributes: Iterable[bytes] = ()) -> bytes:
    """What the kernel answers, after its header. Raises Refused, or HostError where there is no rtnetlink."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, up, up) + b"".join(attributes)
    header = struct.pack("=IHHII", len(body) + 16, kind, flags | _REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE) as kernel:
            kernel.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            kernel.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            kernel.send(header + body)
            answer = kernel.recv(_LONGEST_ANSWER)
    except OSError as error:
        raise HostError(f"the kernel cannot be asked for its network interfaces: {error.strerror}") from None
    _, answered, told, _, _ = struct.unpack_from("=IHHII", answer)
    if answered != _ERROR:
        return answer[16:]
    code: int = struct.unpack_from("=i", answer, 16)[0]
    if code:
        # The error is followed by the header of the request, then, if told so, by attributes of which 1 is a sentence.
        rest = dict(_attributes(answer[36:])) if told & _ACK_TLVS else {}
        raise Refused(-code, files.printable(_text(rest.get(1, b""))))
    return b""


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`; what is cut off at the end is left out."""
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + size]
        at += size + -size % 4


def _link(answer: bytes) -> Link:
    index, flags = struct.unpack_from("=iI", answer, 4)
    found = dict(_attributes(answer[16:]))
    info = dict(_attributes(found.get(INFO, b"")))
    kind = _text(info.get(_INFO_KIND, b""))
    carrier = "up" if found.get(CARRIER, b"\0")[0] else "no carrier"
    # struct rtnl_link_stats64: packets received and sent, then bytes.
    counted = struct.unpack_from("=4Q", found.get(STATS64, b"").ljust(32, b"\0"))
    return Link(
        number=index,
        name=_text(found.get(NAME, b"")),
        kind=kind,
        address=found.get(ADDRESS, b"").hex(":"),
        mtu=_number(found, MTU),
        master=_number(found, MASTER),
        state=carrier if flags & _UP else "down",
        received=(counted[2], counted[0]),
        sent=(counted[3], counted[1]),
        tun=_tun(dict(_attributes(info.get(_INFO_DATA, b"")))) if kind == "tun" else None,
    )


def _tun(data: Mapping[int, bytes]) -> Tun:
    """drivers/net/tun.c, tun_fill_info."""
    kind, persist, several = (data.get(one, b"\0")[0] for one in (_TUN_TYPE, _TUN_PERSIST, _TUN_MULTI_QUEUE))
    return Tun(kind == 2, bool(persist), bool(several), _number(data, _TUN_QUEUES))


def _number(found: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b"")[:4], "little")


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
