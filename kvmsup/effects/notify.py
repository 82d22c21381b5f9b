# SPDX-License-Identifier: LGPL-2.1-or-later
"""sd_notify(3) for what runs on the start path, where a D-Bus library would cost too much."""

from __future__ import annotations

import os


def tell(**states: str | int) -> None:
    """Tell systemd states, such as STATUS="…" or EXTEND_TIMEOUT_USEC=5; nothing happens outside a service.

    That systemd does not listen is no reason for anything to fail.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    import socket  # outside a service, and while nobody waits, there is no need of it

    message = "\n".join(f"{name}={value}" for name, value in states.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(message.encode(errors="replace"), address.replace("@", "\0", 1))
    except OSError:
        pass
