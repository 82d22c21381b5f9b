# SPDX-License-Identifier: LGPL-2.1-or-later
"""vhost-vsock, over which a guest says that it is ready: there, or loaded, or a sentence that says why not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from kvmsup.effects import systemctl
from kvmsup.errors import HostError

_DEVICE = "/dev/vhost-vsock"
# There once the module is loaded; /dev/vhost-vsock itself udev makes before that (modules.devname).
_LOADED = "/sys/class/misc/vhost-vsock"
# _IOW(VHOST_VIRTIO, 0x60, __u64) of linux/vhost.h.
_SET_GUEST_CID = 0x4008AF60


def ensure(root: str) -> None:
    """Load the module where it is missing. Raises HostError when there is no vhost-vsock to be had."""
    if os.path.exists(root + _LOADED):
        return
    with contextlib.suppress(HostError):
        systemctl.start("modprobe@vhost_vsock.service")
    if not os.path.exists(root + _LOADED):
        what = "this host has no vhost-vsock, over which a guest says that it is ready"
        raise HostError(what, "modprobe vhost_vsock; or leave guest.ready out")


def taken(root: str, cid: int) -> str:
    """Why no guest can have the vsock address `cid` now, as one sentence; "" where that cannot be said.

    To be asked when a start has failed: letting go of the address waits for the kernel (vhost_vsock_dev_release).
    """
    try:
        device = os.open(root + _DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.ioctl(device, _SET_GUEST_CID, struct.pack("Q", cid))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"vsock address (CID) {cid}, which belongs to this guest's name, is somebody else's on this host"
    finally:
        os.close(device)
    return ""
