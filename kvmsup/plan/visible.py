# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest → what its sandbox shows of the host's files, where kvm@.service has hidden all; pure.

The guest's own directories and its credentials are shown by systemd itself, symbolic links included (seen on 252 and
257). Firmware is not named by a TOML: setup refuses one in what is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup.model import nets
from kvmsup.model.guest import Guest
from kvmsup.model.hostpaths import HIDDEN
from kvmsup.plan import images, unitfile

# Where create says how far it is.
_NOTIFY = "/run/systemd/notify"
# What /etc/resolv.conf links to, by whoever writes it. Directories, as the files are replaced.
_RESOLVERS = ("/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf")
# What is shown beside the files that a TOML names.
OUR_OWN = (_NOTIFY, *_RESOLVERS)


def directives(guest: Guest) -> list[str]:
    """For [Service]: nothing where the guest needs nothing of it. What is not there is left to whoever opens it."""
    paths = dict.fromkeys(f"-{path}" for path in _needed(guest))
    return [f"BindReadOnlyPaths={' '.join(map(unitfile.path, paths))}"] if paths else []


def _needed(guest: Guest) -> Iterator[str]:
    named = (guest.machine.kernel, guest.machine.initrd, *(disk.base for disk in guest.disks))
    yield from (path for path in named if path and path.startswith(HIDDEN))
    if images.wanted(guest):
        yield _NOTIFY
    if any(net.kind == nets.USER for net in guest.nets):
        yield from _RESOLVERS
