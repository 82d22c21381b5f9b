# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup import FILE: the file of a guest from a libvirt domain's XML, and what of that has no place in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from kvmsup import sizes
from kvmsup.cli import check, show, stdin
from kvmsup.effects import configs, files, installed
from kvmsup.errors import ConfigError, HostError, KvmsupError, visible
from kvmsup.model import config
from kvmsup.model.guest import NAME_RULE, Guest, is_name
from kvmsup.plan import libvirt
from kvmsup.plan.libvirt import Imported
from kvmsup.plan.libvirt_xml import MOST_BYTES, Told
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any

# Of each kind on a screen; --json and the file's own comments have more.
_MOST_SHOWN = 60


def run(asked: argparse.Namespace) -> int:
    """Write the file, or with --output - show it. Raises KvmsupError, then with nothing written."""
    if asked.name and not is_name(asked.name):
        raise KvmsupError(f"--name {asked.name!r} cannot name a guest", NAME_RULE)
    source = "domain on standard input" if asked.file == "-" else asked.file
    try:
        found = libvirt.convert(_content(asked.file), asked.name)
    except KvmsupError as error:
        raise KvmsupError(f"{source}: {error.what}", error.hint) from None
    found = found._replace(changed=(*_unknown_machine(found), *found.changed))
    text = libvirt.render(found, source)
    _read_back(found, text)
    file = asked.output or configs.guest_file(found.name)
    if file == "-":
        _show(asked, found, text)
        return 0
    if os.path.lexists(file):
        raise HostError(f"{file} is there already", "--name for another guest, or --output - to see what it would be")
    files.create(file, text, 0o644)
    _tell(asked, found, text, file)
    return 0


def _content(path: str) -> bytes:
    """What is to be read, and a byte more than that may be. Raises HostError."""
    try:
        if path == "-":
            return stdin.read(MOST_BYTES + 1)
        # A pipe, as <(virsh dumpxml web) is one, comes in parts.
        with open(path, "rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        raise HostError(f"cannot read: {error.strerror}", "virsh dumpxml --inactive GUEST > FILE writes it") from None


def _unknown_machine(found: Imported) -> list[Told]:
    """That this host's QEMU has no such machine; where there is no QEMU to ask, nothing."""
    kind = str(found.values["machine"]["type"])
    try:
        if kind in installed.machines():
            return []
        newest = installed.newest_machine()
    except HostError:
        return []
    why = f'this host\'s QEMU has no {kind} and does not start with it; "{newest}" is other hardware to the guest'
    return [Told("os/type/@machine", why)]


def _read_back(found: Imported, text: str) -> None:
    """What the guest's own reader takes `text` for must be what the domain was. Raises KvmsupError."""
    try:
        guest = config.read_guest(found.name, configs.guest_file(found.name), text.encode()).guest
    except ConfigError as error:
        raise KvmsupError(f"nothing is written, as the file would have mistakes:\n{error}") from None
    if (got := _facts(guest)) != (wanted := _wanted(found)):
        raise KvmsupError(f"nothing is written, as the file would be about another guest: {got}, not {wanted}")


def _facts(guest: Guest) -> dict[str, Any]:
    return {
        "machine": guest.machine.type,
        "vcpus": guest.cpu.vcpus,
        "memory": guest.memory.size,
        "dedicated": guest.placement.dedicated,
        "disks": {disk.name: disk.path for disk in guest.disks},
        "nets": {net.name: (net.kind, net.over) for net in guest.nets},
    }


def _wanted(found: Imported) -> dict[str, Any]:
    """The same, from what the XML said rather than from the text."""
    tables = found.values
    disks = {table.partition(".")[2]: values for table, values in tables.items() if table.startswith("disk.")}
    nets = {
        table.partition(".")[2]: next(iter(of.items())) for table, of in tables.items() if table.startswith("net.")
    }
    return {
        "machine": tables["machine"]["type"],
        "vcpus": tables["cpu"]["vcpus"],
        "memory": sizes.parse(str(tables["memory"]["size"])),
        "dedicated": tables.get("placement", {}).get("cpus") == "dedicated",
        "disks": {name: values["path"] for name, values in disks.items()},
        "nets": {name: (kind, "" if kind == "user" else over) for name, (kind, over) in nets.items()},
    }


def _show(asked: argparse.Namespace, found: Imported, text: str) -> None:
    if asked.json:
        show.as_json(_report(found, text, ""))
        return
    print(text, end="")


def _tell(asked: argparse.Namespace, found: Imported, text: str, file: str) -> None:
    """What was written, what is not in it, what `kvmsup check` says of it, and what to do next."""
    if asked.json:
        show.as_json(_report(found, text, file))
        return
    print(f"{visible(file)} is written")
    _list("otherwise than in libvirt:", found.changed)
    _list("dropped:", found.dropped)
    if not asked.output:
        for one in check.findings([found.name], ""):
            print(one, file=sys.stderr)
    print("next: shut it down in libvirt, and `virsh autostart --disable`: two that run would destroy its disks")
    print(f"      systemctl start kvm@{found.name}")


def _list(head: str, told: Iterable[Told]) -> None:
    lines = [files.printable(str(one)) for one in told]
    if lines:
        print(head)
        print("".join(f"  {line}\n" for line in lines[:_MOST_SHOWN]), end="")
    if len(lines) > _MOST_SHOWN:
        print(f"  and {len(lines) - _MOST_SHOWN} more: --json")


def _report(found: Imported, text: str, file: str) -> dict[str, Any]:
    ours = bool(file) and file == configs.guest_file(found.name)
    return {
        "name": found.name,
        "file": file or None,
        "written": bool(file),
        "toml": text,
        "changed": [one._asdict() for one in found.changed],
        "dropped": [one._asdict() for one in found.dropped],
        "diagnostics": [one._asdict() for one in check.findings([found.name], "")] if ours else [],
        "next": [f"systemctl start kvm@{found.name}"],
    }
