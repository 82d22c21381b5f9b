# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an administrator asks of `kvmsup new` → the text of a guest's file, with comments; pure.

The comments are here, plan/guestfile writes the values and reads them back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from kvmsup import sizes
from kvmsup.errors import KvmsupError
from kvmsup.plan import guestfile
from kvmsup.plan.guestfile import Section
from kvmsup.records import NamedTuple

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


def _sections(asked: Asked) -> Iterator[Section]:
    firmware = {"firmware": "uefi"} if asked.uefi else {}
    version = "With a version the guest's hardware stays the same when QEMU is upgraded."
    yield Section("machine", version, {"type": asked.machine, **firmware})
    yield Section("cpu", "", {"vcpus": asked.vcpus})
    if asked.dedicated:
        own = "A host CPU of its own for each vCPU. `kvmsup plan` says which."
        yield Section("placement", own, {"cpus": "dedicated"})
    pages = {"hugepages": asked.hugepages} if asked.hugepages else {}
    yield Section("memory", "", {"size": sizes.render(asked.memory), **pages})
    yield from _disks(asked)
    if asked.bridge:
        yield Section("net.lan", "", {"bridge": asked.bridge})
    if asked.user_net:
        yield Section(
            "net.nat", "Behind the host's address: the guest reaches out, nobody reaches in.", {"user": True}
        )
    if asked.user_data:
        once = "Applied once, at the first boot; kvmsup.guest(5) says how to have it done again."
        yield Section("cloud-init", once, {"user-data": asked.user_data})


def _disks(asked: Asked) -> Iterator[Section]:
    size = {"size": sizes.render(asked.disk)} if asked.disk else {}
    if asked.image:
        kind = asked.image.format
        copy = f"In /var/lib/kvmsup/{asked.name}; copied from the image at the first start, and never again."
        yield Section("disk.root", copy, {"path": f"root.{kind}", "format": kind, "base": asked.image.path, **size})
    elif asked.disk:
        new = f"In /var/lib/kvmsup/{asked.name}; made, empty, at the first start."
        yield Section("disk.root", new, {"path": "root.qcow2", "format": "qcow2", **size})
    if asked.cdrom:
        after = "Booted from as long as there is nothing to boot on the disk."
        values = {"path": asked.cdrom, "format": "raw", "bus": "cdrom", "read-only": True}
        yield Section("disk.cd", after, values)


def render(asked: Asked) -> str:
    """The text of the file.

    Raises KvmsupError where a value cannot be written, or there is no toml package.
    """
    top = [Section("", "", {"description": asked.description})] if asked.description else []
    network = asked.bridge or asked.user_net
    tail = [] if network else ["No network yet:", "[net.lan]", 'bridge = "br0"']
    return guestfile.render(guestfile.head(asked.name), [*top, *_sections(asked)], tail)


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
