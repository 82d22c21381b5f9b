# SPDX-License-Identifier: LGPL-2.1-or-later
"""Networks: names and addresses that derive from names, who has what already, and what the kernel tells of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup import cli
from kvmsup.effects import interfaces, netns, taps
from kvmsup.errors import ConfigError
from kvmsup.model import claim as claims
from kvmsup.model import config, nets
from kvmsup.model.claim import Interface
from kvmsup.model.guest import Guest
from kvmsup.plan import nets as planned
from kvmsup.plan import plugs, ports, refusals, unitfile
from kvmsup.plan.plugs import BridgeTap
from tests.unit import hosts, networks
from tests.unit.networks import Networks

HEAD = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "64M"\n'
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,26}", fullmatch=True)
NET_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,14}", fullmatch=True)
LAN = Interface("lan", "bridge", "02:75:59:c2:7f:08", "web.lan", "br0")


def guest(text: str, name: str = "web") -> Guest:
    return config.read_guest(name, f"/etc/kvmsup/{name}.toml", (HEAD + text).encode()).guest


@pytest.mark.parametrize(("machine", "room"), [("pc-q35-7.2", 32), ("pc-i440fx-7.2", 4)])
def test_no_room(machine: str, room: int) -> None:
    """As many as there are places in plan/ports.py, and not one more."""
    assert ports.most(ports.NIC_SLOTS, machine) == room
    text = HEAD.replace("pc-q35-7.2", machine)
    text += "".join(f'[net.n{number}]\nbridge = "br0"\n' for number in range(room))
    read = config.read_guest("web", "web.toml", text.encode())
    assert len({place.place["bus"] + place.place.get("addr", "") for place in planned.places(read.guest)}) == room
    with pytest.raises(ConfigError) as caught:
        config.read_guest("web", "web.toml", f'{text}[net.last]\nbridge = "br0"\n'.encode())
    assert f"net.last: there is no room on the machine for more than {room}" in str(caught.value)


@given(NAMES, NET_NAMES)
def test_what_derives_from_names(name: str, net: str) -> None:
    link = nets.link("bridge", "br0", name, net)
    assert 3 <= len(link) <= 15
    assert link == f"{name}.{net}" or len(f"{name}.{net}") > 15
    mac = nets.derived_mac(name, net)
    assert len(mac) == 17
    assert mac.startswith("02:")
    # It is one that the file could give, and stays what it is.
    (found,) = guest(f'[net.{net}]\nbridge = "br0"\nmac = "{mac}"\n', name).nets
    assert found.mac == mac


def test_names_do_not_meet() -> None:
    """Every two-part split of one text is another interface; so are long names with one beginning and one end."""
    text = "abcdefghijklmnopqrstuvwx"
    split = [(text[:at], text[at:]) for at in range(9, len(text))]
    long = [(f"a-very-long-name-{number}", "lan") for number in range(3000)]
    for found in (split, long):
        assert len({nets.link("bridge", "br0", *names) for names in found}) == len(found)
        assert len({nets.derived_mac(*names) for names in found}) == len(found)


def test_what_is_proposed_instead_of_a_group_s_address_is_none_that_is_refused() -> None:
    for mac, better in (("ff:ff:ff:ff:ff:ff", "52:ff:ff:ff:ff:ff"), ("01:00:5e:00:00:01", "00:00:5e:00:00:01")):
        with pytest.raises(ConfigError) as caught:
            guest(f'[net.lan]\nbridge = "br0"\nmac = "{mac}"')
        assert f'hint: the first byte is even: mac = "{better}"' in str(caught.value)
        guest(f'[net.lan]\nbridge = "br0"\nmac = "{better}"')


@pytest.mark.parametrize("order", [("lan", "out"), ("out", "lan")])
def test_a_tap_that_is_called_as_the_guest_s_own_will_be(order: tuple[str, str]) -> None:
    """attach would find it there, and propose to delete what the administrator has made."""
    tables = {"lan": '[net.lan]\nbridge = "br0"\n', "out": '[net.out]\ntap = "web.lan"\n'}
    with pytest.raises(ConfigError) as caught:
        guest("".join(tables[name] for name in order))
    assert f": net.{order[1]}." in str(caught.value)
    assert f"net.{order[0]} has web.lan already\n" in str(caught.value)


def test_addresses_stay() -> None:
    """An upgrade must not give a guest another address."""
    assert nets.derived_mac("web", "lan") == "02:75:59:c2:7f:08"
    assert nets.link("bridge", "br0", "a-guest-with-a-long-name", "lan") == "a-guest.j370ci"


def test_a_claim_keeps_its_interfaces() -> None:
    tap = Interface("mine", "tap", "52:54:00:aa:bb:cc", "Tap_0", "Tap_0")
    user = Interface("out", "user", "02:00:00:00:00:01", "", "")
    held = hosts.claim("web")._replace(nets=(LAN, tap, user))
    text = claims.render(held)
    assert claims.parse(text, "web.env") == held
    old = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("KVMSUP_NETS="))
    assert claims.parse(old, "web.env").nets == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[net.lan]\nbridge = "br1"\nmac = "02:75:59:c2:7f:08"\n',
            "net.lan: 02:75:59:c2:7f:08 is the address of net.lan of guest web too\n"
            '  hint: mac = "…" in [net.lan] gives it one of its own, or stop that guest',
        ),
        (
            '[net.a]\nuser = true\n[net.b]\ntap = "web.lan"\n',
            "net.b: web.lan is the host's end of net.lan of guest web too\n"
            "  hint: name another tap, rename the interface, or stop that guest",
        ),
    ],
    ids=["address", "tap"],
)
def test_what_another_guest_has_is_refused(text: str, said: str) -> None:
    held = hosts.claim("web")._replace(nets=(LAN,))
    with pytest.raises(refusals.Taken) as caught:
        refusals.check_nets(guest(text, "db"), [held])
    assert (str(caught.value), caught.value.holders) == (said, ("web",))
    refusals.check_nets(guest(text, "web"), [held])  # its own


def test_no_two_user_networks_are_in_the_way_of_each_other() -> None:
    held = hosts.claim("web")._replace(nets=(Interface("out", "user", "02:00:00:00:00:01", "", ""),))
    refusals.check_nets(guest("[net.out]\nuser = true\n", "db"), [held])


def test_check_tells_of_doubles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    mine = '[net.lan]\nbridge = "br0"\nmac = "52:54:00:00:00:01"\n[net.mine]\ntap = "tap0"\n'
    other = '[net.up]\ntap = "tap0"\nmac = "52:54:00:00:00:01"\n'
    for name, text in (("web", mine), ("db", other), ("broken", "[net"), ("alone", '[net.lan]\nbridge = "br0"\n')):
        (tmp_path / f"etc/kvmsup/{name}.toml").write_text(HEAD + text)
    assert cli.main(["check", "--root", str(tmp_path), "web", "alone"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        "2 guests are sound\n",
        "/etc/kvmsup/web.toml:7:7: warning: net.lan.mac: 52:54:00:00:00:01 is the address of net.up of guest db too: "
        "only one of them can run\n"
        '  7 | mac = "52:54:00:00:00:01"\n'
        "    |       ^^^^^^^^^^^^^^^^^^^\n"
        "  hint: leave it out for one that derives from the names\n"
        "/etc/kvmsup/web.toml:9:7: warning: net.mine.tap: tap0 is the tap of net.up of guest db too: "
        "only one of them can run\n"
        '  9 | tap = "tap0"\n'
        "    |       ^^^^^^\n"
        "  hint: name another one\n",
    )


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30))
def test_units_of_paths(text: str) -> None:
    """As systemd-escape(1) has it, for all that can be in a name; asked for a few only, it is a process each."""
    name = text.replace("/", "_")
    unit = unitfile.path_unit(f"/sys//subsystem/{name}/")
    assert unit.isascii()
    back = unit.replace("-", "/").encode().decode("unicode_escape").encode("latin-1").decode()
    assert back == f"sys/subsystem/{name}"


@pytest.mark.parametrize(
    "path", ["/sys/subsystem/net/devices/br-lan", "/.a/.b", "/dev/disk/by-id/x+y@z_1:2", "/a b/ü"]
)
def test_units_of_paths_as_systemd_has_them(path: str) -> None:
    if not shutil.which("systemd-escape"):
        pytest.skip("systemd-escape is not installed")
    done = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True)
    assert unitfile.path_unit(path) == done.stdout.rstrip("\n")


def test_plugs_come_back_from_the_environment() -> None:
    text = '[net.a]\nbridge = "br0"\nqueues = 2\n[net.b]\nmacvtap = "eth0"\n[net.c]\ntap = "tap0"\n'
    made = tuple(planned.plugs(guest(text)))
    assert [type(one.source).__name__ for one in made] == ["BridgeTap", "MacVtap", "OwnTap"]
    assert plugs.parse(plugs.render(made)) == made


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Networks]:
    with networks.made(tmp_path) as found:
        yield found


def seen(net: Networks, *claimed: Interface) -> list[interfaces.Seen]:
    held = hosts.claim("web")._replace(nets=claimed)
    with netns.of_process(net.root, 1) as host, netns.inside(host):
        return interfaces.of_guest("", held, net.pid)


def test_traffic_is_told_as_the_guest_sees_it(net: Networks) -> None:
    net.on_host("ip link add br0 type bridge; ip link set br0 up")
    source = BridgeTap("net.lan", LAN.link, "br0", LAN.mac, "kvm@web lan", 1, vhost=False)
    ((descriptor, _),) = taps.opened(source, net.root, net.pid)
    os.write(descriptor, bytes(10) + bytes.fromhex("ffffffffffff 027559c27f08 88b5") + bytes(46))
    (found,) = seen(net, LAN)
    assert (found.state, found.wrong) == ("up", "")
    assert found.traffic
    assert (found.traffic.sent_bytes, found.traffic.sent_packets) == (60, 1)
    net.on_host("ip link set web.lan down")
    assert seen(net, LAN)[0].state == "down"
    net.on_host("ip link set web.lan nomaster")
    assert seen(net, LAN)[0].wrong == "web.lan is in no bridge"
    net.on_host("ip link add other type bridge; ip link set web.lan master other")
    assert seen(net, LAN)[0].wrong == "web.lan is in other"
    os.close(descriptor)
    assert seen(net, LAN)[0][5:] == ("", None, "web.lan is gone")


def test_a_macvtap_is_seen_in_its_namespace(net: Networks) -> None:
    net.in_guest("ip link add v0 type veth peer name web.lan; ip link set v0 up; ip link set web.lan up")
    (found,) = seen(net, LAN._replace(kind="macvtap", over="eth0"))
    assert (found.state, found.wrong) == ("up", "")
    assert found.traffic
    (gone,) = seen(net, LAN._replace(kind="macvtap", over="eth0", link="other"))
    assert (gone.state, gone.traffic, gone.wrong) == ("", None, "other is gone, with eth0")
    with netns.of_process(net.root, 1) as host, netns.inside(host):
        held = hosts.claim("web")._replace(nets=(LAN._replace(kind="macvtap"),))
        (untold,) = interfaces.of_guest(net.root, held, 4194304)
    assert (untold.state, untold.traffic, untold.wrong) == ("", None, "")


def test_check_tells_what_the_host_lacks(net: Networks) -> None:
    net.on_host("ip tuntap add tap0 mode tap; ip link add br0 type bridge; ip tuntap add tun0 mode tun")
    text = "".join(
        f'[net.{name}]\n{kind} = "{over}"\n'
        for name, kind, over in (
            ("a", "bridge", "br0"),
            ("b", "bridge", "br9"),
            ("c", "bridge", "tap0"),
            ("d", "tap", "tap0"),
            ("e", "tap", "br0"),
            ("f", "tap", "tun0"),
            ("g", "macvtap", "br0"),
        )
    )
    with netns.of_process(net.root, 1) as host, netns.inside(host):
        found = [(one.path[1:], one.what, one.severity) for one in interfaces.problems(guest(text))]
    assert found == [
        (("b", "bridge"), "this host has no interface br9", "warning"),
        (("c", "bridge"), "tap0 is no bridge: it is a tap", "warning"),
        (("e", "tap"), "br0 is no tap: it is of the kind bridge", "warning"),
        (("f", "tap"), "tun0 is no tap: it is a tun", "warning"),
    ]
