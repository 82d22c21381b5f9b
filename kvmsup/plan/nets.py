# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest → its network interfaces as QEMU, attach and systemd are told of them; pure."""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup.model import nets
from kvmsup.model.guest import Guest, Net
from kvmsup.plan import ports, unitfile
from kvmsup.plan.plugs import BridgeTap, Command, MacVtap, OwnTap, Plug, descriptor
from kvmsup.plan.ports import Port
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

DEVICE = "virtio-net-pci"
# Where systemd has a unit for each network interface, by udev's 99-systemd.rules.
_LINKS = "/sys/subsystem/net/devices"


def id_of(net: Net) -> str:
    """What QEMU calls the interface and its other end."""
    return f"net.{net.name}"


def places(guest: Guest) -> list[Port]:
    """Where each interface sits, in their order."""
    kind = guest.machine.type
    return [ports.port(ports.NIC_SLOTS, index, id_of(net), kind) for index, net in enumerate(guest.nets)]


def device(net: Net, place: Port) -> dict[str, Any]:
    """The properties of the guest's network card.

    Its MTU is the guest's own affair: host_mtu= from the bridge would make the guest another one on another host.
    """
    found: dict[str, Any] = {"id": id_of(net), "netdev": id_of(net), "mac": net.mac, **place.place}
    if net.queues > 1:
        # Two interrupts a queue, one for the configuration and one for the control queue.
        found["mq"], found["vectors"] = True, 2 * net.queues + 2
    if net.boot:
        found["bootindex"] = net.boot
    else:
        # Without its ROM the BIOS has no driver, and does not try to boot from it when all else has failed.
        found["romfile"] = ""
    return found


def plugs(guest: Guest) -> Iterator[Plug]:
    """What attach plugs in: all but a user network, which QEMU makes by itself."""
    for net, place in zip(guest.nets, places(guest), strict=True):
        if net.kind != nets.USER:
            commands = (
                Command("netdev_add", _netdev(net)),
                Command("device_add", {"driver": DEVICE, **device(net, place)}),
            )
            yield Plug(id_of(net), _source(guest, net), commands)


def _source(guest: Guest, net: Net) -> BridgeTap | OwnTap | MacVtap:
    if net.kind == nets.BRIDGE:
        alias = f"kvm@{guest.name} {net.name}"
        return BridgeTap(id_of(net), net.link, net.over, net.mac, alias, net.queues, True)
    if net.kind == nets.TAP:
        return OwnTap(id_of(net), net.link, net.queues, True)
    return MacVtap(id_of(net), net.link, net.over, net.mac, net.queues, True)


def _netdev(net: Net) -> dict[str, Any]:
    """QEMU's end, made of the descriptors that came before it, by their names."""
    name, queues = id_of(net), range(net.queues)
    taps, vhosts = (":".join(descriptor(name, what, queue) for queue in queues) for what in ("tap", "vhost"))
    return {"type": "tap", "id": name, "fds": taps, "vhost": True, "vhostfds": vhosts}


def dependencies(guest: Guest) -> list[str]:
    """For [Unit]: the host's interfaces that must be there first; waiting for them is systemd's work."""
    overs = dict.fromkeys(net.over for net in guest.nets if net.over)
    units = [f"{unitfile.path_unit(f'{_LINKS}/{over}')}.device" for over in overs]
    lines = [f"{key}={' '.join(units)}" for key in ("Requires", "After") if units]
    if any(net.kind == nets.MACVTAP for net in guest.nets):
        # DeviceAllow=char-macvtap means nothing before the module has its number.
        lines += [f"{key}=modprobe@macvtap.service" for key in ("Wants", "After")]
    return lines


def directives(guest: Guest) -> list[str]:
    """For [Service]: the devices that attach opens in the unit's device policy, and what a user network needs."""
    kinds = {net.kind for net in guest.nets}
    lines = []
    if kinds & {nets.BRIDGE, nets.TAP}:
        lines.append("DeviceAllow=/dev/net/tun rw")
    if nets.MACVTAP in kinds:
        lines.append("DeviceAllow=char-macvtap rw")
    if kinds - {nets.USER}:
        lines.append("DeviceAllow=/dev/vhost-net rw")
    if nets.USER in kinds:
        # QEMU itself opens the guest's connections, from the host's network, and has nobody come to it. A systemd
        # without BPF (Debian 12's) lets it.
        lines += [
            "PrivateNetwork=no",
            "RestrictAddressFamilies=AF_INET AF_INET6",
            "IPAddressDeny=",
            "SocketBindDeny=any",
        ]
    return lines
