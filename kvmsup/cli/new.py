# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup new GUEST: writes the file of a guest that is not there yet, and says what to do next."""

from __future__ import annotations

import contextlib
import os
import sys

from kvmsup.cli import check, show
from kvmsup.effects import configs, files, installed
from kvmsup.errors import ConfigError, HostError, KvmsupError
from kvmsup.model import config
from kvmsup.model.guest import NAME_RULE, is_name
from kvmsup.plan import newguest
from kvmsup.plan.newguest import Asked
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

_MOST_KEYS = 64 << 10


def run(asked: argparse.Namespace) -> int:
    """Write the file, or with --print show it. Raises KvmsupError, then with nothing written."""
    name = asked.guest
    if not is_name(name):
        raise KvmsupError(f"{name!r} cannot name a guest", NAME_RULE)
    seed = _seed(asked)
    wanted = _asked(asked, _user_data_file(name) if seed else _absolute(asked.user_data))
    text = newguest.render(wanted)
    _read_back(wanted, text)
    if asked.print:
        _print(asked, text, seed)
        return 0
    _write(name, text, seed)
    return _tell(asked, text, seed)


def _user_data_file(guest: str) -> str:
    return f"{configs.DIRECTORY}/{guest}.user-data"


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""


def _seed(asked: argparse.Namespace) -> str:
    """The user-data to write, "" for none. Raises KvmsupError."""
    if not (asked.hostname or asked.ssh_key):
        return ""
    if asked.user_data:
        raise KvmsupError("--user-data says everything itself", "write --hostname and --ssh-key into that file")
    if asked.hostname:
        newguest.check_hostname(asked.hostname)
    keys = [key for path in asked.ssh_key for key in newguest.public_keys(path, _keys_in(path))]
    return newguest.user_data(asked.hostname, keys)


def _keys_in(path: str) -> str:
    try:
        content = files.read_bytes(path, _MOST_KEYS + 1)
    except OSError as error:
        raise HostError(f"--ssh-key {path}: {error.strerror}") from None
    if len(content) > _MOST_KEYS:
        raise HostError(f"--ssh-key {path} has over {_MOST_KEYS >> 10} KiB", "name a file of a few keys")
    return content.decode(errors="replace")


def _asked(asked: argparse.Namespace, user_data: str) -> Asked:
    """The guest that is asked for. Raises KvmsupError where that is none."""
    if not (asked.image or asked.cdrom):
        hint = "--image FILE copies one; --cdrom FILE --disk 20G boots an installer"
        raise KvmsupError("there is nothing to boot from", hint)
    image = installed.image(_absolute(asked.image)) if asked.image else None
    if image:
        newguest.check_image(image, asked.disk)
    return Asked(
        name=asked.guest,
        machine=asked.machine or installed.newest_machine(),
        vcpus=asked.vcpus,
        memory=asked.memory,
        description=asked.description,
        uefi=asked.uefi,
        dedicated=asked.dedicated,
        hugepages=asked.hugepages,
        image=image,
        cdrom=_absolute(asked.cdrom),
        disk=asked.disk,
        bridge=asked.bridge,
        user_net=asked.user_net,
        user_data=user_data,
    )


def _read_back(wanted: Asked, text: str) -> None:
    """What the guest's own reader takes `text` for must be what was asked for. Raises KvmsupError."""
    file = configs.guest_file(wanted.name)
    try:
        guest = config.read_guest(wanted.name, file, text.encode()).guest
    except ConfigError as error:
        raise KvmsupError(f"nothing is written, as the file would have mistakes:\n{error}") from None
    got = (guest.machine.type, guest.cpu.vcpus, guest.memory.size, guest.placement.dedicated, guest.description)
    if got != (wanted.machine, wanted.vcpus, wanted.memory, wanted.dedicated, wanted.description):
        raise KvmsupError(f"nothing is written, as the file would be about another guest: {got}")


def _print(asked: argparse.Namespace, text: str, seed: str) -> None:
    if asked.json:
        show.as_json(_report(asked, text, seed, written=False))
        return
    print(text, end="")
    if seed:
        print(f"\n# and {_user_data_file(asked.guest)}, for root alone:")
        print("".join(f"#   {line}\n" for line in seed.splitlines()), end="")


def _write(guest: str, text: str, seed: str) -> None:
    """Both files or none, and none over one that is there. Raises HostError."""
    file, beside = configs.guest_file(guest), _user_data_file(guest)
    if os.path.lexists(file):
        raise HostError(f"{file} is there already", f"another name, or --print; kvmsup check {guest} reads it")
    if seed:
        files.create(beside, seed, 0o600)
    try:
        files.create(file, text, 0o644)
    except HostError:
        if seed:
            with contextlib.suppress(OSError):
                os.unlink(beside)
        raise


def _next(guest: str) -> list[str]:
    return [f"systemctl start kvm@{guest}", f"systemctl enable kvm@{guest}", f"kvmsup console {guest}"]


def _tell(asked: argparse.Namespace, text: str, seed: str) -> int:
    """What was written, what `kvmsup check` says of it, and what to do next."""
    name = asked.guest
    if asked.json:
        show.as_json(_report(asked, text, seed, written=True))
        return 0
    print(f"{configs.guest_file(name)} is written")
    if seed:
        print(f"{_user_data_file(name)} is written: the keys are for the image's own user, such as debian or ubuntu")
    for found in check.findings([name], ""):
        print(found, file=sys.stderr)
    start, boot, console = _next(name)
    print(f"next: {start}\n      {boot}   (at every boot of the host)\n      {console}")
    return 0


def _report(asked: argparse.Namespace, text: str, seed: str, *, written: bool) -> dict[str, object]:
    found = [one._asdict() for one in check.findings([asked.guest], "")] if written else []
    return {
        "name": asked.guest,
        "file": configs.guest_file(asked.guest),
        "written": written,
        "toml": text,
        "user_data_file": _user_data_file(asked.guest) if seed else None,
        "user_data": seed or None,
        "diagnostics": found,
        "next": _next(asked.guest),
    }
