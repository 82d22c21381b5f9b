# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the configuration asks for, as a start and a reload read it."""

from __future__ import annotations

from kvmsup.effects import configs, sysfs
from kvmsup.model import config
from kvmsup.model.guest import Guest, Host, is_name
from kvmsup.model.topology import Topology
from kvmsup.plan import agreed
from kvmsup.records import NamedTuple


class Request(NamedTuple):
    """What the files of one guest and of its host ask for, on which host; `loaded` is both files' fingerprint."""

    guest: Guest
    host: Host
    topology: Topology
    loaded: str


def requested(name: str, root: str) -> Request | None:
    """The request of the guest called `name`, None where it has no file. Raises KvmsupError."""
    content = configs.read_guest(root, name) if is_name(name) else None
    if content is None:
        return None
    host_content = configs.read_host(root)
    topology = sysfs.topology(root)
    host = config.read_host(configs.HOST_FILE, host_content, topology)
    guest = config.read_guest(name, configs.guest_file(name), content, topology).guest
    return Request(guest, host, topology, agreed.fingerprint(content, host_content))
