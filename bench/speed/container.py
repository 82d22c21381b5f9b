# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian with systemd, kvmsup and its peers in a container on this machine's own kernel.

For the host's side of work: the lab's emulated CPUs distort what takes milliseconds. It has the machine's devices and
no network.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import build, cache
from tests.lab.progress import Progress
from tests.lab.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = "/srv/kvmsup"
_PACKAGES = """
    systemd systemd-sysv systemd-container udev dbus polkitd kmod procps util-linux iproute2 python3 python3-pystemd
    python3-pyudev python3-toml linux-image-amd64 qemu-system-x86 qemu-utils busybox-static cpio xz-utils xorriso acl
    libcap2-bin numactl libvirt-daemon-system libvirt-clients podman
"""
RECIPE = Recipe("trixie", tuple(_PACKAGES.split()))
# Nodes of the container's own: what is done to their owners must not be done to this machine's.
_DEVICES = ("kvm", "net/tun", "vhost-net", "vhost-vsock")
# Waits that only cost time where there is no network and no terminal; udev would manage this machine's devices.
_MASKED = (
    *("systemd-networkd-wait-online.service", "console-getty.service", "systemd-resolved.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-hwdb-update.service"),
)
_BOOT_SECONDS = 120.0
# Everything is in a mount namespace of its own, which ends with systemd-nspawn; the overlay is in memory.
_BOOT = r"""
set -e
mount -t tmpfs -o mode=0755 run /run
mkdir -p /run/bench/upper /run/bench/work /run/bench/root
mount -t overlay -o lowerdir="$1",upperdir=/run/bench/upper,workdir=/run/bench/work overlay /run/bench/root
shift
exec systemd-nspawn --quiet --register=no --keep-unit --boot --directory=/run/bench/root --machine=bench \
    --console=read-only --capability=all --private-users=no --link-journal=no "$@"
"""


class Broken(RuntimeError):
    """The container did not do what it was told; the text has its own words."""


@dataclass(frozen=True)
class Container:
    """A container that runs; `leader` is its first process as this machine's kernel numbers it."""

    leader: int

    def run(self, command: str | Sequence[str], *, check: bool = True, timeout: float = 600.0) -> str:
        """What a command (a string is for sh) printed. Raises Broken if it fails, subprocess.TimeoutExpired."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        inside = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        done = subprocess.run(
            [*inside, f"--wdns={PLACE}", "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={
                "PYTHONDONTWRITEBYTECODE": "1",
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "HOME": "/root",
            },
        )
        if check and done.returncode != 0:
            raise Broken(f"exit status {done.returncode}: {command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def install(self, deb: Path) -> None:
        """Install a package of kvmsup from below the repository."""
        self.run(f"dpkg --install {PLACE}/{deb.absolute().relative_to(REPOSITORY)}")


def _tree(progress: Progress) -> Path:
    def fill(place: Path) -> None:
        progress.stage(f"{RECIPE.suite}: a system with kvmsup's peers")
        build.bootstrap(RECIPE, place / "tree", progress)
        for unit in _MASKED:
            (place / "tree/etc/systemd/system" / unit).symlink_to("/dev/null")

    return cache.entry("peers", f"{RECIPE.suite}-{cache.digest(*RECIPE.packages, *_MASKED)}", fill) / "tree"


@contextlib.contextmanager
def booted(progress: Progress) -> Iterator[Container]:
    """A container whose systemd has come up; it is gone with all of its processes at the end.

    Raises Broken, and LabUnavailable and LabError where the system cannot be built.
    """
    tree = _tree(progress)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOT, "boot", str(tree)]
    process = subprocess.Popen(
        [*command, f"--bind-ro={REPOSITORY}:{PLACE}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # /proc/sys and /sys can be written as on a host: pages are reserved there, and KSM is switched.
        env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
    )
    try:
        container = Container(_leader(process))
        _make_devices(container)
        yield container
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _leader(process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + _BOOT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for pid in _children(process.pid):
            with contextlib.suppress(Broken, subprocess.TimeoutExpired):
                if Container(pid).run("systemctl is-system-running --wait", check=False, timeout=60).strip():
                    return pid
        time.sleep(0.2)
    process.kill()
    assert process.stdout is not None
    raise Broken(f"the container did not boot:\n{process.stdout.read().decode(errors='replace')[-4000:]}")


def _make_devices(container: Container) -> None:
    for device in _DEVICES:
        with contextlib.suppress(FileNotFoundError):
            number = os.stat(f"/dev/{device}").st_rdev
            node = f"/dev/{device} c {os.major(number)} {os.minor(number)}"
            container.run(f"mkdir -p $(dirname /dev/{device}); mknod -m 660 {node}; chgrp kvm /dev/{device}")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
