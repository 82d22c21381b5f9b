# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two real network namespaces: one that a test takes for the host's, and one for a guest's QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Networks(NamedTuple):
    """`root` shows the first as that of process 1; `pid` is a process in the second."""

    root: str
    host: int
    pid: int

    def on_host(self, command: str) -> str:
        """What a shell command prints in the host's namespace."""
        return _inside(self.host, command)

    def in_guest(self, command: str) -> str:
        return _inside(self.pid, command)

    def links(self, pid: int = 0) -> dict[str, dict[str, Any]]:
        """Every interface of the host, or of `pid`, by name, as iproute2 tells it."""
        told = json.loads(_inside(pid or self.host, "ip -j -d -s link"))
        return {one["ifname"]: one for one in told}


def _inside(pid: int, command: str) -> str:
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "sh", "-ec", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def made(directory: Path) -> Iterator[Networks]:
    """Skips the test, with the reason, where this machine does not let it make any."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        pytest.skip("network namespaces and taps need root and /dev/net/tun")
    if not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        pytest.skip("iproute2 and util-linux are not installed")
    with holder() as host, holder() as guest:
        for pid, real in ((1, host), (guest, guest)):
            os.makedirs(directory / f"proc/{pid}/ns")
            os.symlink(f"/proc/{real}/ns/net", directory / f"proc/{pid}/ns/net")
        os.symlink("/dev", directory / "dev")
        yield Networks(str(directory), host, guest)


@contextlib.contextmanager
def holder() -> Iterator[int]:
    """A process in a network namespace of its own."""
    with subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        # What comes back was read after unshare(2).
        process.stdin.write(b"\n")
        process.stdin.flush()
        if not process.stdout.read(1):
            pytest.skip("this machine makes no network namespaces")
        yield process.pid
        process.stdin.close()
