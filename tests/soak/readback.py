# SPDX-License-Identifier: LGPL-2.1-or-later
"""What came of a guest, read back: everything that was meant is there, once, and nothing else is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import filterfalse
from random import Random

from kvmsup.errors import ConfigError
from kvmsup.model import claim as claims
from kvmsup.model import hostpaths
from kvmsup.model.guest import Guest, Host
from kvmsup.model.hostpaths import is_absolute, is_device
from kvmsup.model.topology import Topology
from kvmsup.plan import agreed, changes, disks, dropin, firstboot, images, nets, paths, placement, plugs, qemu, visible
from kvmsup.plan.unitfile import Variable, Word
from tests.unit import hosts, real_systemd, systemd_syntax
from tests.unit.real_manager import Started

_DIRECTIVES = frozenset(
    "SourcePath Description Wants After Requires RequiresMountsFor Slice DeviceAllow CPUAffinity LimitMEMLOCK"
    " Delegate TimeoutStartSec StateDirectory StateDirectoryMode NotifyAccess Environment PrivateNetwork"
    " RestrictAddressFamilies IPAddressDeny SocketBindDeny BindPaths BindReadOnlyPaths LoadCredential"
    " ExecStartPre ExecStart".split()
)
# Options of QEMU whose value is a list of properties, with the properties that kvmsup sets.
_PROPERTIES = {
    "-name": "guest debug-threads",
    "-sandbox": "obsolete elevateprivileges spawn resourcecontrol",
    "-object": "id size hugetlb hugetlbsize share merge prealloc prealloc-threads prealloc-context policy host-nodes"
    " cpu-affinity",
    "-machine": "memory-backend pflash0 pflash1 smbios-entry-point-type mem-merge usb vmport",
    "-accel": "split-wx",
    "-smp": "cpus maxcpus sockets dies cores threads",
    "-m": "size",
    "-overcommit": "mem-lock",
    "-fw_cfg": "name file",
    "-smbios": "type value",
    "-chardev": "id path server wait signal",
    "-mon": "chardev mode",
    "-netdev": "id",
    "-numa": "nodeid memdev cpus src dst val",
    "-vnc": "",
    "-device": "id drive serial addr bus name chardev netdev mac mq vectors bootindex romfile iothread scsi-id unit"
    " guest-cid free-page-reporting deflate-on-oom chassis multifunction io-reserve",
}
_FLAGS = ("-S", "-nodefaults", "-no-user-config")
_VALUES = {
    "KVMSUP_HOST_NODES": "0-1,host-nodes=3",
    "KVMSUP_FIRMWARE": "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "KVMSUP_AIO": "io_uring",
}


def check_text(text: str) -> None:
    """It can go to a terminal, and is no book."""
    assert text.replace("\n", "").replace("\t", "").isprintable(), ascii(text)
    assert len(text) < 100_000, len(text)


_LOADED = "0123456789abcdef"


def check_told(error: ConfigError) -> None:
    """Every finding has a place and is told once, and one of them is an error."""
    assert len(set(map(str, error.diagnostics))) == len(error.diagnostics)
    assert any(found.severity == "error" for found in error.diagnostics)
    for found in error.diagnostics:
        assert not found.source or 1 <= found.column <= len(found.source) + 1
        assert len(found.source) <= 300
        assert len(found.what) < 500
    check_text(str(error))


def value(variable: str) -> str:
    """Of a variable that setup writes, as a claim has it."""
    if variable.startswith("KVMSUP_FILL_"):
        return "0-1,cpu-affinity=3"
    return _VALUES.get(variable, "0")


def meant(guest: Guest) -> list[str]:
    """QEMU's argv."""
    return [paths.BINARY, *(_resolved(word) for option in qemu.options(guest) for word in option)]


def _resolved(word: Word) -> str:
    return "".join(value(part.name) if isinstance(part, Variable) else part for part in word)


class _Values(dict[str, str]):
    def __missing__(self, key: str) -> str:
        assert key.startswith("KVMSUP_"), f"no variable of ours: {key}"
        return value(key)


def check_units(guest: Guest, host: Host) -> None:
    """The drop-ins as systemd's documentation reads them."""
    texts = dropin.render(guest, host, "/etc/kvmsup/web.toml", _LOADED)
    setup, own = (systemd_syntax.directives(text) for text in texts.values())
    assert [key for key, _ in setup if key != "TimeoutStartSec"] == ["SourcePath", "Environment"]
    assert agreed.outline_in(next(iter(texts.values())), _LOADED) == agreed.outline(guest)
    found = {key: [one for name, one in own if name == key] for key in {name for name, _ in own}}
    assert set(found) <= _DIRECTIVES
    for key in ("Description", "Slice", "RequiresMountsFor", "ExecStartPre", "CPUAffinity", "SourcePath"):
        assert len(found.get(key, [])) <= 1, key
    about = f": {guest.description}" if guest.description else ""
    assert systemd_syntax.specifiers(found["Description"][0]) == f"KVM guest web{about}".rstrip(" ")
    reset, command = found["ExecStart"]
    argv = systemd_syntax.command(command, _Values())
    assert reset == ""
    assert argv == meant(guest)
    check_options(argv)
    _check_paths(guest, found)
    _check_environment(guest, found.get("Environment", []))


def _check_paths(guest: Guest, found: Mapping[str, list[str]]) -> None:
    loaded = [(one.name, one.path) for one in (*guest.credentials, *firstboot.seed_sources(guest))]
    lines = [systemd_syntax.specifiers(line).partition(":") for line in found.get("LoadCredential", [])]
    assert [(name, path) for name, _, path in lines] == loaded
    waited = {one.path for one in guest.disks if is_absolute(one.path)} | {one.base for one in guest.disks if one.base}
    words = [word for line in found.get("RequiresMountsFor", []) for word in _words(line)]
    assert sorted(words) == sorted(path for path in waited if not is_device(path))
    named = (guest.machine.kernel, guest.machine.initrd, *(one.base for one in guest.disks))
    shown = [word for line in found.get("BindReadOnlyPaths", []) for word in _words(line)]
    assert {f"-{path}" for path in named if path.startswith(hostpaths.HIDDEN)} <= set(shown)
    assert {word.removeprefix("-") for word in shown} <= {*named, *visible.OUR_OWN}
    allowed = {next(iter(_words(line))) for line in found.get("DeviceAllow", [])}
    devices = {one.path for one in guest.disks if is_absolute(one.path) and is_device(one.path)}
    assert devices <= allowed
    assert allowed - devices <= {"/dev/vhost-vsock", "/dev/net/tun", "char-macvtap", "/dev/vhost-net"}


def _words(line: str) -> list[str]:
    return [systemd_syntax.specifiers(word) for word in systemd_syntax.words(line)]


def _check_environment(guest: Guest, lines: list[str]) -> None:
    variables = dict(word.split("=", 1) for line in lines for word in _words(line))
    plugged = [*disks.plugs(guest), *nets.plugs(guest)]
    assert plugs.given(variables) == tuple(plugs.parse(plugs.render(plugged)))
    assert [*map(str, plugs.given(variables))] == [*map(str, plugs.parse(plugs.render(plugged)))]
    assert images.parse(variables.get(images.VARIABLE, "[]")) == tuple(images.of(guest))
    assert variables[claims.GENERATED] == _LOADED
    assert set(variables) <= {claims.GENERATED, plugs.VARIABLE, images.VARIABLE, firstboot.SEED}


def check_options(argv: list[str]) -> None:
    """QEMU takes each word for the option or the value that it is, and no value for a further property."""
    words = iter(argv[1:])
    for option in words:
        if option in _FLAGS:
            continue
        word = next(words)
        if option in _PROPERTIES:
            names = [name for name, _ in _properties(word)]
            assert set(names) <= set(_PROPERTIES[option].split()), (option, word)
        elif option == "-blockdev":
            assert word.startswith("{") or {name for name, _ in _properties(word)} == {
                "node-name",
                "filename",
                "read-only",
            }
            assert not word.startswith("{") or set(json.loads(word)) <= _NODE, word
        else:
            assert option in (
                "-display",
                "-cpu",
                "-kernel",
                "-initrd",
                "-append",
                "-serial",
                "-D",
                "-trace",
                "-action",
            )
            assert option not in ("-kernel", "-initrd", "-D") or word.startswith("/")


_NODE = {"driver", "node-name", "read-only", "cache", "discard", "backing", "file"}


def _properties(word: str) -> Iterator[tuple[str, str]]:
    """As QEMU reads them (util/qemu-option.c): a doubled comma is one that ends nothing. The head has no name."""
    for number, part in enumerate(word.replace(",,", "\0").split(",")):
        name, equals, rest = part.partition("=")
        if equals:
            yield name, rest
        else:
            assert number == 0, f"a property without a value: {part}"


def check_written_down(guest: Guest) -> None:
    """What a reload compares with."""
    keys = changes.flatten(guest)
    again = json.loads(json.dumps(keys))
    assert changes.differences(again, keys) == []


def check_place(guest: Guest, topology: Topology, free: Mapping[int, int], random: Random) -> None:
    """A place that is nobody else's, and a claim that is read as it was written. Raises KvmsupError for a refusal."""
    other = hosts.claim("db", [str(random.choice(sorted(topology.online)))], dedicated=random.random() < 0.5)
    found = placement.place(guest, Host(None, "never"), topology, [other], free)
    assert frozenset().union(*found.vcpu) <= topology.online
    assert len(found.vcpu) == guest.cpu.maxcpus
    if guest.placement.dedicated:
        own = [cpu for cpus in found.vcpu for cpu in cpus]
        assert len(own) == len(set(own)) == guest.cpu.maxcpus
        assert not other.dedicated or not set(own) & other.own_cpus
    claim = placement.claim(guest, found, "0")
    assert claims.parse(claims.render(claim), "web.env") == claim


def unit(guest: Guest) -> str:
    """A whole unit with the guest's own part of it."""
    text = dropin.render(guest, Host(None, "never"), "/etc/kvmsup/web.toml", "0")
    return text["kvm@web.service.d/50-kvmsup.conf"].replace("[Unit]", "[Unit]\nDefaultDependencies=no", 1)


def check_loaded(guest: Guest, name: str, dump: str) -> None:
    """What systemd says that it has read of the unit `name`: each line of its own, and no command but ours."""
    lines = real_systemd.command_lines(dump, name)
    argv = [systemd_syntax.environment(word, _Values()) for word in lines[-1]]
    assert argv == meant(guest)
    assert lines[:-1] in ([], [["/usr/lib/kvmsup/kvmsup-guest", "create", guest.name]])
    block = dump.partition(f"-> Unit {name}:\n")[2].partition("-> Unit ")[0]
    assert re.findall(r"-> (Exec\w+):", block) == ["ExecStartPre", "ExecStart"][2 - len(lines) :]
    about = f": {guest.description}" if guest.description else ""
    assert _told(block, "Description") == [f"KVM guest {guest.name}{about}".rstrip(" ")]
    waited = {one.path for one in guest.disks if is_absolute(one.path)} | {one.base for one in guest.disks if one.base}
    told = sorted(line.removesuffix(" (origin-file)") for line in _told(block, "RequiresMountsFor"))
    # A unit with a directory of its own also waits for that.
    assert [path for path in told if not path.startswith("/var/lib")] == sorted(filterfalse(is_device, waited))
    variables = dict(line.split("=", 1) for line in _told(block, "Environment"))
    assert plugs.given(variables) == plugs.parse(plugs.render([*disks.plugs(guest), *nets.plugs(guest)]))
    devices = {line.rpartition(" ")[0] for line in _told(block, "DeviceAllow")}
    assert {path for path in waited if is_device(path)} <= devices


def check_started(guest: Guest, started: Started) -> None:
    """What a running systemd says that it has started, and the argv that the kernel has of it."""
    assert systemd_syntax.environment(started.told, _Values()) == " ".join(meant(guest))
    assert started.argv == meant(guest)[1:]


def _told(block: str, name: str) -> list[str]:
    return re.findall(rf"^\t+{name}: (.*)$", block, re.MULTILINE)
