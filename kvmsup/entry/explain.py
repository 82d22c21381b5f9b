# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a guest does not start, where QEMU or systemd cannot say it well.

kvm@NAME, the template's own ExecStart=, runs main: systemd has no drop-in for this guest.
"""

from __future__ import annotations

from kvmsup.effects import configs, journal
from kvmsup.errors import ConfigError, HostError, KvmsupError
from kvmsup.model import config


def main(name: str, root: str = "") -> int:
    """Say what is wrong with the configuration of the guest called `name`; always 1."""
    found = reason(name, root)
    journal.say(journal.ERROR, str(found), found.catalog or "start-refused")
    return 1


def reason(name: str, root: str) -> KvmsupError:
    """Why there is nothing to start."""
    file = configs.guest_file(name)
    try:
        content = configs.read_guest(root, name)
        if content is None:
            return HostError(f"there is no guest {name}: no {file}", catalog="no-guest")
        config.read_host(configs.HOST_FILE, configs.read_host(root))
        config.read_guest(name, file, content)
    except KvmsupError as error:
        return error
    return HostError(f"systemd has not loaded {file} yet", "systemctl daemon-reload", "not-loaded")


def refusal(name: str, root: str) -> KvmsupError | None:
    """What is wrong with the guest's CPU or address, after a QEMU that ended at once; None where neither was why.

    Asking costs imports that main has no use for.
    """
    from kvmsup.effects import models, vsock
    from kvmsup.model.vsock import cid

    file = configs.guest_file(name)
    try:
        content = configs.read_guest(root, name)
        if content is None:
            return None
        read = config.read_guest(name, file, content)
        if read.guest.inside.ready and (taken := vsock.taken(root, cid(name))):
            hint = "leave guest.ready out, or stop what has it (ls -l /proc/*/fd | grep vhost-vsock)"
            return HostError(taken, hint, "in-use")
        read.document.problems.extend(models.problems(read.guest))
    except KvmsupError as error:
        return error
    found = [one for one in read.document.diagnostics() if one.severity == "error"]
    return ConfigError(found) if found else None
