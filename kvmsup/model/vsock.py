# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's address on the host's vsock, and how its systemd is told where to say that it is ready.

The guest's PID 1 sends what it has to say to the address in the credential vmm.notify_socket (systemd(1), "System
credentials"): version 254 and later. It binds to a port below 1024 first, so that nobody but root can speak for it.
"""

from __future__ import annotations

# Below 1024 too, so that nobody but root can take it on the host; units/kvmsup-listen.socket has it as well.
PORT = 586
# A stream: SOCK_SEQPACKET needs Linux 5.14 in the guest, and plain "vsock:" tries SOCK_DGRAM first.
CREDENTIAL = f"vmm.notify_socket=vsock-stream:2:{PORT}"
# 0, 1 and 2 are reserved (vsock(7)).
_FIRST_CID = 3


def cid(guest: str) -> int:
    """The vsock address of the guest called `guest`, the same at each start: 31 bits of a hash (FNV-1a) of its name.

    By hand, because the modules that have a hash cost attach and the generator more time than this.
    """
    value = 0x811C9DC5
    for byte in guest.encode():
        value = (value ^ byte) * 0x01000193 % (1 << 32)
    return _FIRST_CID + value % (1 << 31)
