# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an administrator asks of `kvmsup new` → the text of a guest's file, with comments; pure.

The comments are here, the values are quoted by the toml package. tomllib reads the text back, and a value that does
not come out as it went in is an error: two grammars never decide about one guest (docs/design.md, 8).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence

from kvmsup import sizes
from kvmsup.errors import KvmsupError
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

# Of OpenSSH: what the public half begins with (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").
_KEY = re.compile(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?")
# RFC 1123, 2.1: labels of letters, digits and dashes, 63 each.
_HOSTNAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class Image(NamedTuple):
    """A disk image as qemu-img sees it; `size` is what a guest sees of it, in bytes."""

    path: str
    format: str
    size: int


class Asked(NamedTuple):
    """One guest as it is asked for; sizes in bytes. "", 0 and None are what was not asked."""

    name: str
    machine: str
    vcpus: int
    memory: int
    description: str = ""
    uefi: bool = False
    dedicated: bool = False
    hugepages: str = ""
    image: Image | None = None
    cdrom: str = ""
    disk: int = 0
    bridge: str = ""
    user_net: bool = False
    user_data: str = ""


class _Section(NamedTuple):
    """One table: its name, what is said about it, and its keys with their values."""

    table: str
    comment: str
    values: dict[str, Any]


def _sections(asked: Asked) -> Iterator[_Section]:
    firmware = {"firmware": "uefi"} if asked.uefi else {}
    version = "With a version the guest's hardware stays the same when QEMU is upgraded."
    yield _Section("machine", version, {"type": asked.machine, **firmware})
    yield _Section("cpu", "", {"vcpus": asked.vcpus})
    if asked.dedicated:
        own = "A host CPU of its own for each vCPU. `kvmsup plan` says which."
        yield _Section("placement", own, {"cpus": "dedicated"})
    pages = {"hugepages": asked.hugepages} if asked.hugepages else {}
    yield _Section("memory", "", {"size": sizes.render(asked.memory), **pages})
    yield from _disks(asked)
    if asked.bridge:
        yield _Section("net.lan", "", {"bridge": asked.bridge})
    if asked.user_net:
        yield _Section(
            "net.nat", "Behind the host's address: the guest reaches out, nobody reaches in.", {"user": True}
        )
    if asked.user_data:
        once = "Applied once, at the first boot; kvmsup.guest(5) says how to have it done again."
        yield _Section("cloud-init", once, {"user-data": asked.user_data})


def _disks(asked: Asked) -> Iterator[_Section]:
    size = {"size": sizes.render(asked.disk)} if asked.disk else {}
    if asked.image:
        kind = asked.image.format
        copy = f"In /var/lib/kvmsup/{asked.name}; copied from the image at the first start, and never again."
        yield _Section("disk.root", copy, {"path": f"root.{kind}", "format": kind, "base": asked.image.path, **size})
    elif asked.disk:
        new = f"In /var/lib/kvmsup/{asked.name}; made, empty, at the first start."
        yield _Section("disk.root", new, {"path": "root.qcow2", "format": "qcow2", **size})
    if asked.cdrom:
        after = "Booted from as long as there is nothing to boot on the disk."
        values = {"path": asked.cdrom, "format": "raw", "bus": "cdrom", "read-only": True}
        yield _Section("disk.cd", after, values)


def render(asked: Asked) -> str:
    """The text of the file.

    Raises KvmsupError where a value cannot be written, or there is no toml package.
    """
    lines = [
        f"# The KVM guest {asked.name}: systemctl start kvm@{asked.name}",
        f"# All keys: kvmsup.guest(5). Mistakes: kvmsup check {asked.name}. An edit applies from the next start on.",
        "",
    ]
    top = {"description": asked.description} if asked.description else {}
    wanted: dict[str, Any] = dict(top)
    if top:
        lines += [_assignments(top)]
    for section in _sections(asked):
        lines += [f"[{section.table}]"]
        lines += [f"# {section.comment}"] if section.comment else []
        lines += [_assignments(section.values)]
        _put(wanted, section)
    if not (asked.bridge or asked.user_net):
        lines += ["# No network yet:", "# [net.lan]", '# bridge = "br0"', ""]
    text = "\n".join(lines)
    _check(text, wanted)
    return text


def _put(wanted: dict[str, Any], section: _Section) -> None:
    into = wanted
    for part in section.table.split("."):
        into = into.setdefault(part, {})
    into.update(section.values)


def _assignments(values: dict[str, Any]) -> str:
    try:
        import toml
    except ImportError:
        raise KvmsupError(
            "there is no Python package toml, which writes the file", "apt install python3-toml"
        ) from None
    encoder = toml.TomlEncoder()
    # toml 0.10.2 makes another string of one with \\x in it. JSON's escapes are TOML's, which has DEL besides.
    encoder.dump_funcs[str] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(toml.dumps(values, encoder=encoder))


def _check(text: str, wanted: dict[str, Any]) -> None:
    try:
        found = tomllib.loads(text.encode().decode())
    except ValueError:  # of either: a file's name need not be UTF-8
        found = {}
    if found != wanted:
        raise KvmsupError("what was asked for cannot be written as TOML", "use paths and a description of plain text")


def user_data(hostname: str, keys: Sequence[str]) -> str:
    """cloud-config that sets the host name, if there is one, and lets the owners of `keys` in as the image's user.

    JSON is YAML, and a string of it is safe there, whatever it contains. Keys are without JSON's escapes: PyYAML makes
    two characters of what has two of them, as all beyond U+FFFF.
    """
    lines = ["#cloud-config"]
    if hostname:
        lines += [f"hostname: {json.dumps(hostname.partition('.')[0])}"]
    if "." in hostname:
        lines += [f"fqdn: {json.dumps(hostname)}"]
    if keys:
        lines += ["ssh_authorized_keys:", *(f"  - {json.dumps(key, ensure_ascii=False)}" for key in keys)]
    return "\n".join(lines) + "\n"


def check_hostname(hostname: str) -> None:
    """Raises KvmsupError for what is no host name."""
    if not _HOSTNAME.fullmatch(hostname):
        raise KvmsupError(f"--hostname {ascii(hostname)[1:-1]}: no host name", "letters, digits and dashes, and dots")


def public_keys(path: str, text: str) -> list[str]:
    """The keys in `text`, the file at `path`. Raises KvmsupError for anything else, a private key above all."""
    if "PRIVATE KEY" in text:
        raise KvmsupError(f"--ssh-key {path} is a private key, which is for nobody else", f"--ssh-key {path}.pub")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found or not all(_KEY.fullmatch(line) and line.isprintable() for line in found):
        raise KvmsupError(f"--ssh-key {path} has no public key of ssh", "such as ~/.ssh/id_ed25519.pub")
    return found


def check_image(image: Image, disk: int) -> None:
    """Raises KvmsupError for an image that a guest cannot be started from, with `disk` bytes if they are not 0."""
    if image.format not in ("raw", "qcow2"):
        convert = f"qemu-img convert -O qcow2 {image.path} NEW.qcow2"
        raise KvmsupError(f"--image {image.path} is of the format {image.format}; guests have raw and qcow2", convert)
    if disk and disk < image.size:
        what = f"--disk {sizes.render(disk)} is less than the image's {sizes.render(image.size)}"
        raise KvmsupError(what, f"--disk {sizes.render(image.size)} or more, or leave it out")
