# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's end of a guest's network interfaces: made here by root, and handed to QEMU as descriptors.

All of them end with QEMU, however it ends. A tap is not persistent: the kernel removes it with its last descriptor.
A macvtap link always stays, but it is in QEMU's own network namespace, and that goes with its last process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator

from kvmsup.effects import netns, rtnetlink
from kvmsup.effects.rtnetlink import Link, Refused
from kvmsup.errors import HostError
from kvmsup.plan.plugs import BridgeTap, Command, MacVtap, OwnTap, descriptor
from kvmsup.steps import step

# include/uapi/linux/if_tun.h
_SET_IFF = 0x400454CA
_TAP, _NO_PI, _VNET_HDR, _MULTI_QUEUE, _ONLY_NEW = 0x0002, 0x1000, 0x4000, 0x0100, 0x8000
_GET_ADDRESS = 0x8927  # SIOCGIFHWADDR
_TRIES = 8


Source = BridgeTap | OwnTap | MacVtap


def opened(source: Source, root: str, pid: int) -> list[tuple[int, Command]]:
    """Descriptors for QEMU `pid`, which the caller closes, each with the command that takes it along.

    Raises HostError.
    """
    with _kept() as found:
        if source.vhost:
            _open_vhost(found, root, source.queues)
        names = [descriptor(source.id, "vhost", queue) for queue in range(len(found))]
        if isinstance(source, BridgeTap):
            _open_bridged(found, source, root)
        elif isinstance(source, OwnTap):
            _open_own(found, source, root)
        else:
            _open_macvtap(found, source, root, pid)
        names += [descriptor(source.id, "tap", queue) for queue in range(source.queues)]
        return [(one, Command("getfd", {"fdname": name})) for one, name in zip(found, names, strict=True)]


@contextlib.contextmanager
def _kept() -> Iterator[list[int]]:
    """A list of descriptors, all of which are closed when this ends with an error."""
    found: list[int] = []
    try:
        yield found
    except BaseException:
        for one in found:
            os.close(one)
        raise


def _open_vhost(found: list[int], root: str, count: int) -> None:
    """With vhost-net the kernel moves the guest's packets itself."""
    for _ in range(count):
        found.append(_device(f"{root}/dev/vhost-net", "modprobe vhost_net"))  # noqa: PERF401


def _device(path: str, hint: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: cannot open: {error.strerror}", hint) from None


def _open_bridged(found: list[int], source: BridgeTap, root: str) -> None:
    """A descriptor for each queue of a new tap that is up and in its bridge."""
    with netns.of_process(root, 1) as host, netns.inside(host):
        bridge = _bridge(source.bridge)
        step("attach.tap")
        _attach_queues(found, root, source.link, source.queues, new=True)
        tap = _prepare(source, bridge)
        step("attach.join")
        _join(source, tap, bridge)


def _bridge(name: str) -> Link:
    found = rtnetlink.find(name)
    if found is None:
        raise HostError(f"there is no bridge {name}", "kvmsup.guest(5) shows how systemd-networkd makes one")
    if found.kind != "bridge":
        hint = "name a bridge, or let Open vSwitch have a tap of its own and name that: tap = …"
        if not _of_open_vswitch(found):
            hint = f"name a bridge; the guest can be on {name} directly with macvtap"
        raise HostError(f"{name} is no bridge: it is {told(found)}", hint)
    return found


def _of_open_vswitch(link: Link) -> bool:
    """Its bridges are links of its own kind, and what is in them has their datapath as its master."""
    master = rtnetlink.find(index=link.master) if link.master else None
    return "openvswitch" in (link.kind, master.kind if master else "")


def told(link: Link) -> str:
    """What kind of interface it is, for people."""
    if _of_open_vswitch(link):
        return "of Open vSwitch"
    if link.tun:
        return "a tap" if link.tun.tap else "a tun"
    return f"of the kind {link.kind}" if link.kind else "hardware"


def _prepare(source: BridgeTap, bridge: Link) -> Link:
    """Give the new tap what it needs before it is in the bridge.

    Its address is high, since a bridge without one of its own takes the lowest of its ports', and not the guest's,
    which the bridge would then take for its own host's. It comes first: udev gives another one to a tap that it finds
    without, unless it has read our 80-kvmsup-tap.link (systemd.link(5), MACAddressPolicy=). The MTU is the bridge's,
    which would otherwise follow the tap's.
    """
    tap = _made(source.link)
    properties = (rtnetlink.address(f"fe{source.mac[2:]}"), rtnetlink.integer(rtnetlink.MTU, bridge.mtu))
    try:
        rtnetlink.change(tap.number, *properties, rtnetlink.text(rtnetlink.ALIAS, source.alias))
    except Refused as refused:
        what = f"{source.link} cannot have the MTU of bridge {source.bridge}, {bridge.mtu}: {refused.what}"
        raise HostError(what, f"ip link set {source.bridge} mtu 1500") from None
    _take_ipv6_off(tap)
    return tap


def _made(name: str) -> Link:
    found = rtnetlink.find(name)
    if found is None:
        raise HostError(f"interface {name} is gone, a moment after it was made")
    return found


def _join(source: BridgeTap, tap: Link, bridge: Link) -> None:
    try:
        rtnetlink.change(tap.number, rtnetlink.integer(rtnetlink.MASTER, bridge.number), up=True)
    except Refused as refused:
        raise HostError(f"bridge {source.bridge} does not take {source.link}: {refused.what}") from None


def _take_ipv6_off(link: Link) -> None:
    """The guest's addresses are the guest's: the host has none on its end of it."""
    try:
        rtnetlink.change(link.number, rtnetlink.without_ipv6())
    except Refused as refused:
        if refused.number != errno.EAFNOSUPPORT:  # a host without IPv6, or an MTU too small for it
            raise


def _open_own(found: list[int], source: OwnTap, root: str) -> None:
    """A descriptor for each queue of the administrator's tap."""
    name = source.link
    with netns.of_process(root, 1) as host, netns.inside(host):
        there = rtnetlink.find(name)
        if there is None:
            raise HostError(f"there is no tap {name}", f"ip tuntap add {name} mode tap, or name a bridge instead")
        if not there.tun or not there.tun.tap:
            raise HostError(f"{name} is no tap: it is {told(there)}", "ip tuntap add tap0 mode tap makes one")
        if there.tun.multiqueue != (source.queues > 1):
            made = f"ip tuntap add {name} mode tap{' multi_queue' if source.queues > 1 else ''}"
            has = "several queues" if there.tun.multiqueue else "one queue"
            raise HostError(f"tap {name} is made for {has}, and queues = {source.queues}", f"make it anew: {made}")
        if there.tun.queues:  # the kernel counts those of taps for several only
            raise _busy(name)
        _attach_queues(found, root, name, source.queues, new=False)


def _busy(name: str) -> HostError:
    return HostError(f"tap {name} is in use", "stop what has it open, or name another one")


def _attach_queues(found: list[int], root: str, name: str, count: int, *, new: bool) -> None:
    """Descriptors of `count` queues of the tap, which is made with the first if it is a `new` one."""
    for number in range(count):
        found.append(_device(f"{root}/dev/net/tun", "modprobe tun"))
        try:
            fcntl.ioctl(found[-1], _SET_IFF, _request(name, count, _ONLY_NEW if new and not number else 0))
        except OSError as error:
            raise _not_attached(name, error, new=new) from None


def _not_attached(name: str, error: OSError, *, new: bool) -> HostError:
    if error.errno != errno.EBUSY:
        return HostError(f"tap {name} cannot be opened: {error.strerror}")
    if new:
        return HostError(f"the host has an interface {name} already", f"ip link delete {name}, if nobody needs it")
    return _busy(name)


def _request(name: str, queues: int, more: int = 0) -> bytes:
    """A struct ifreq: packets are frames with a header for virtio and none of tun's own."""
    flags = _TAP | _NO_PI | _VNET_HDR | (_MULTI_QUEUE if queues > 1 else 0) | more
    return struct.pack("16sH22x", name.encode(), flags)


def _open_macvtap(found: list[int], source: MacVtap, root: str, pid: int) -> None:
    """A descriptor for each queue of a new macvtap of `source.over`, in the network namespace of QEMU `pid`."""
    with netns.of_process(root, 1) as host, netns.of_process(root, pid) as private:
        if netns.same(host, private):
            what = "the guest's unit has no network namespace of its own, with which a macvtap would end"
            raise HostError(what, "leave PrivateNetwork= as it is, or use a bridge")
        step("attach.macvtap")
        with netns.inside(private):
            # systemd may keep the namespace over an automatic restart.
            if (old := rtnetlink.find(source.link)) is not None:
                rtnetlink.delete(old.number)
        with netns.inside(host):
            device = _make_macvtap(source, root, private)
        with netns.inside(private):
            _bring_up(source)
            _attach_macvtap(found, source, device)


def _make_macvtap(source: MacVtap, root: str, private: int) -> str:
    """Make the link; returns the path of its device, whose number is the link's index and so must be free on the host.

    Indices are free in a new network namespace, but /dev is everybody's.
    """
    parent = rtnetlink.find(source.over)
    if parent is None:
        raise HostError(f"there is no interface {source.over}", "ip link shows those there are")
    first = zlib.crc32(source.mac.encode())
    for index in ((first + attempt) % (1 << 30) + (1 << 20) for attempt in range(_TRIES)):
        device = f"{root}/dev/tap{index}"
        if os.path.exists(device):
            continue
        try:
            rtnetlink.create_macvtap(index, source.link, parent.number, source.mac, private)
        except Refused as refused:
            raise _not_on(source, parent, refused) from None
        return device
    raise HostError(f"no device is free for {source.link}", "ls /dev/tap*")


def _not_on(source: MacVtap, parent: Link, refused: Refused) -> HostError:
    reason = refused.what
    if refused.number == errno.EBUSY:
        master = rtnetlink.find(index=parent.master) if parent.master else None
        reason = f"it is in {master.name}" if master else "somebody else has it"
    return HostError(f"no macvtap can be made on {source.over}: {reason}", "name its bridge, or another interface")


def _attach_macvtap(found: list[int], source: MacVtap, device: str) -> None:
    """The queues of the device, once it is seen to be that of the link: names in /dev are anybody's."""
    for _ in range(source.queues):
        found.append(_device(device, "is /dev a devtmpfs? findmnt /dev"))
        try:
            there = fcntl.ioctl(found[-1], _GET_ADDRESS, bytes(40))[18:24].hex(":")
            if there != source.mac:
                raise HostError(f"{device} is the device of {there} instead of {source.mac}")
            fcntl.ioctl(found[-1], _SET_IFF, _request(source.link, source.queues))
        except OSError as error:
            raise HostError(f"{device}: cannot be used: {error.strerror}") from None


def _bring_up(source: MacVtap) -> None:
    """Where its parent is down, it has a carrier as soon as that is up."""
    link = _made(source.link)
    _take_ipv6_off(link)
    rtnetlink.change(link.number, up=True)
