# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns what a lab host consists of: suite, packages, the files added to it, and the key of all that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from . import cache, still

_PACKAGES = """
    systemd systemd-sysv udev dbus kmod procps util-linux iproute2 apt needrestart
    python3 python3-pystemd python3-pyudev python3-toml
    linux-image-amd64 qemu-system-x86 qemu-utils ovmf
    busybox-static cpio xz-utils zstd e2fsprogs acl libcap2-bin numactl
    strace socat less vim-tiny bash-completion xorriso
"""

# Timers and waits that only cost time here, or change the host behind a test's back.
_MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
    fstrim.timer man-db.timer getty@tty1.service systemd-timesyncd.service systemd-pstore.service
    systemd-networkd-wait-online.service systemd-random-seed.service
"""

# What has nothing to generate here, and is run at every daemon-reload all the same: most of what one costs.
_MASKED_GENERATORS = """
    systemd-bless-boot-generator systemd-cryptsetup-generator systemd-debug-generator systemd-gpt-auto-generator
    systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-rc-local-generator
    systemd-run-generator systemd-ssh-generator systemd-system-update-generator systemd-sysv-generator
    systemd-tpm2-generator systemd-veritysetup-generator
"""

_AGENT_UNIT = """\
[Unit]
Description=Command agent of the lab
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service systemd-sysctl.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/lab/agent.py
Restart=always
RestartSec=1
# What a test runs belongs to an administrator, so it is where a root shell would be.
Slice=user.slice
KillMode=process
TasksMax=infinity

[Install]
WantedBy=sysinit.target
"""

_CONSOLE_LOGIN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
# An interactive shell ignores SIGTERM, and every reboot would wait 90 seconds for it.
KillSignal=SIGKILL
"""

PACKAGES = tuple(_PACKAGES.split())
MASKED = tuple(_MASKED.split())
MASKED_GENERATORS = tuple(_MASKED_GENERATORS.split())

FILES: dict[str, str] = {
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 lab\n::1 localhost\n",
    "etc/machine-id": "1ab01ab01ab01ab01ab01ab01ab01ab0\n",
    "etc/locale.conf": "LANG=C.UTF-8\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/fstab": "tmpfs /tmp tmpfs mode=1777,nosuid,nodev 0 0\n",
    # What a host that runs guests has loaded anyway. kvm_amd or kvm_intel comes by itself, through udev.
    "etc/modules-load.d/lab.conf": "tun\nvhost_net\nvhost_vsock\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitBurst=0\n",
    # Emulated CPUs are slow: time limits of the host's own services must not be what fails a test.
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=180s\nDefaultDeviceTimeoutSec=180s\n",
    "etc/systemd/system/lab-agent.service": _AGENT_UNIT,
    "etc/systemd/system/serial-getty@ttyS0.service.d/lab.conf": _CONSOLE_LOGIN,
    # All emulated CPUs have one time stamp counter; Linux takes those of several AMD sockets to differ. Asking the
    # HPET for the time means to wait for QEMU's one lock. Not before all CPUs are up: one of them then lost its timer
    # now and then.
    "etc/tmpfiles.d/lab.conf": "w /sys/devices/system/clocksource/clocksource0/current_clocksource - - - - tsc\n",
    "etc/udev/rules.d/90-lab.rules": 'SUBSYSTEM=="virtio-ports", ATTR{name}=="lab.0", MODE="0600"\n',
}

KERNEL_COMMAND_LINE = (
    "root=/dev/vda rootfstype=ext4 rw console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0"
    " random.trust_cpu=on tsc=reliable clocksource=hpet nmi_watchdog=0 rcupdate.rcu_expedited=1"
    " default_hugepagesz=2M hugepagesz=1G hugepages=2"
)

DISK_SIZE_MIB = 4096
_VERSION = 1  # raise it when build.py makes something else of the same recipe


def agent_source() -> str:
    """The program that runs inside the lab, as text."""
    return (Path(__file__).parent / "agent.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Recipe:
    """One kind of lab host. Two equal recipes share everything that was ever built from one of them."""

    suite: str = "trixie"
    packages: tuple[str, ...] = PACKAGES

    @property
    def key(self) -> str:
        """Changes with whatever the built image depends on, except for the archive's own contents."""
        what = [self.suite, self.packages, MASKED, MASKED_GENERATORS, FILES, DISK_SIZE_MIB, _VERSION]
        return f"{self.suite}-{cache.digest(json.dumps(what), agent_source(), still.kernel())}"

    @property
    def emulator(self) -> Recipe:
        """The recipe whose QEMU runs this host: older ones than trixie's panic the lab's kernel."""
        return self if self.suite == "trixie" else Recipe("trixie", self.packages)
