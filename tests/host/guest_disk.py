# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest: the disk of a Debian 13 with its own systemd, that boots under BIOS and UEFI, built once and cached.

A label of MBR kind serves both firmwares: syslinux in the FAT partition for one, systemd-boot in the same for the
other, with one kernel and one initramfs. Nothing is mounted to make it. It is small, and starts little: in the lab it
boots under a KVM that is itself emulated.

There it boots under BIOS only: OVMF's interrupt handler writes CR8 (UefiCpuPkg, CpuExceptionHandlerLib), which ends
an emulating QEMU where KVM waits for its guest to take an interrupt ("tcg_handle_interrupt: assertion failed:
(bql_locked())"; target/i386/tcg/system/misc_helper.c, helper_write_crN, in 10.0).

    python3 -m tests.host.guest_disk     builds it, and prints its path
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab import build, cache, initramfs
from tests.lab.errors import LabError, LabUnavailable
from tests.lab.host import Host, Lab
from tests.lab.progress import Progress, Silent
from tests.lab.recipe import Recipe

# Where `put` leaves it on a host: qcow2, read-only.
REMOTE = "/srv/debian13.qcow2"
# The guest is up: what its own last unit prints on ttyS0.
UP = "debian13: up"

_PACKAGES = """
    systemd systemd-sysv udev dbus kmod procps util-linux iproute2 iputils-ping busybox-static
    linux-image-cloud-amd64 systemd-boot-efi qemu-guest-agent openssh-server
"""
_CLOUD_INIT = "cloud-init python3-minimal e2fsprogs"

# Built with Debian's linux-image-cloud-amd64; a disk may be on virtio-blk or virtio-scsi.
_MODULES = ("virtio_blk", "virtio_scsi", "sd_mod")

_COMMAND_LINE = (
    "rw rootfstype=ext4 console=ttyS0 quiet panic=-1 mitigations=off audit=0 random.trust_cpu=on tsc=reliable"
    " rcupdate.rcu_expedited=1 cryptomgr.notests systemd.show_status=0"
)

# Nothing of these says anything about kvmsup, and each costs a start.
_MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-timesyncd.service systemd-pstore.service systemd-networkd-wait-online.service systemd-random-seed.service
    systemd-binfmt.service systemd-hwdb-update.service systemd-journal-catalog-update.service
    systemd-boot-random-seed.service systemd-remount-fs.service systemd-update-utmp.service
    systemd-networkd-persistent-storage.service getty@tty1.service systemd-tpm2-setup.service
    systemd-tpm2-setup-early.service systemd-pcrmachine.service systemd-pcrphase.service
    systemd-pcrphase-sysinit.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount
    dev-mqueue.mount sys-fs-fuse-connections.mount ldconfig.service systemd-machine-id-commit.service
    systemd-udev-settle.service systemd-rfkill.socket systemd-creds.socket modprobe@configfs.service
    modprobe@drm.service modprobe@efi_pstore.service modprobe@dm_mod.service modprobe@loop.service
    modprobe@fuse.service sys-kernel-config.mount run-lock.mount
"""
_MASKED_GENERATORS = """
    systemd-debug-generator systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-rc-local-generator
    systemd-run-generator systemd-ssh-generator systemd-system-update-generator systemd-sysv-generator
    systemd-tpm2-generator
"""

_UP_UNIT = f"""\
[Unit]
Description=Say on the serial port that the guest is up
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "{UP}: $(uname -n)" >/dev/ttyS0'

[Install]
WantedBy=multi-user.target
"""

_LOGIN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
KillSignal=SIGKILL
"""

_LOADER_ENTRY = f"""\
title Debian 13
linux /vmlinuz
initrd /initrd
options {_COMMAND_LINE}
"""

_SYSLINUX = f"""\
SERIAL 0
PROMPT 0
DEFAULT debian
LABEL debian
    LINUX /vmlinuz
    INITRD /initrd
    APPEND {_COMMAND_LINE}
"""

FILES: dict[str, str] = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/machine-id": "deb13deb13deb13deb13deb13deb13de\n",
    "etc/locale.conf": "LANG=C.UTF-8\n",
    "etc/fstab": "LABEL=root / ext4 defaults 0 0\n",
    "etc/resolv.conf": "",
    "etc/systemd/journald.conf.d/guest.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/system.conf.d/guest.conf": "[Manager]\nDefaultTimeoutStartSec=300s\nDefaultDeviceTimeoutSec=300s\n",
    "etc/systemd/network/80-guest.network": "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\nLinkLocalAddressing=yes\n",
    "etc/systemd/system/guest-up.service": _UP_UNIT,
    "etc/systemd/system/serial-getty@.service.d/guest.conf": _LOGIN,
}
# Enabled, as units below a target's directory.
_WANTED = {
    "multi-user.target.wants": ("guest-up.service", "systemd-networkd.service"),
    "sockets.target.wants": ("ssh.socket",),
}

_ESP_START_MIB, _ESP_MIB, _DISK_MIB = 1, 63, 640
# What a shell tells its terminal.
_KEPT = 3
_VERSION = 1  # raise it when _build makes something else of the same recipe


def key(cloud_init: bool = False) -> str:
    """Changes with whatever the disk is made of, except for the archive's own contents."""
    what = [packages(cloud_init), FILES, _WANTED, _MASKED, _MASKED_GENERATORS, _MODULES, _LOADER_ENTRY, _SYSLINUX]
    sizes = [_ESP_START_MIB, _ESP_MIB, _DISK_MIB, _VERSION]
    return cache.digest(json.dumps([what, sizes]), inspect.getsource(initramfs))


def packages(cloud_init: bool) -> tuple[str, ...]:
    """What is installed in the guest, without what that needs."""
    return tuple(f"{_PACKAGES} {_CLOUD_INIT if cloud_init else ''}".split())


def missing() -> str:
    """Why this machine cannot build the disk, in one line; empty if it can."""
    if reason := build.missing():
        return reason
    absent = [name for name in ("sfdisk", "mformat", "mcopy", "syslinux", "qemu-img") if not build.which(name)]
    if absent:
        return f"the guest's disk needs {', '.join(absent)} (Debian: apt install fdisk mtools syslinux qemu-utils)"
    return "" if Path("/usr/lib/SYSLINUX/mbr.bin").exists() else "the guest's disk needs syslinux's mbr.bin"


def path(*, cloud_init: bool = False, progress: Progress | None = None) -> Path:
    """The disk on this machine, in qcow2, built now if the cache lacks it; not to be written to.

    Raises LabUnavailable if it would have to be built and cannot, LabError if building fails.
    """
    shown = progress or Silent()
    place = cache.entry("guest-disk", key(cloud_init), lambda new: _build(new, cloud_init, shown))
    cache.touch(place)
    for old in cache.oldest("guest-disk", "", _KEPT):
        cache.drop(old)
    return place / "disk.qcow2"


def put(host: Host, *, cloud_init: bool = False) -> str:
    """Copy the disk to `host`, unless it is there, and return its path there."""
    if host.run(["test", "-e", REMOTE], check=False).rc:
        host.put(path(cloud_init=cloud_init), REMOTE, mode=0o444)
    return REMOTE


def up(host: Host, guest: str, timeout: float = 240.0) -> None:
    """Wait until the guest has booted."""
    host.wait_for_line(f"--unit=kvm@{guest}", UP, timeout=timeout)


def snapshot(lab: Lab, below: str) -> str:
    """The key of a state of `lab` that is `below` with the disk on it; made now if it is not there."""
    found = f"{below}-guest-{key()}"
    if not lab.has(found):
        with lab.fresh(below) as host:
            put(host)
            lab.snapshot(host, found)
    return found


def _build(place: Path, cloud_init: bool, progress: Progress) -> None:
    if reason := missing():
        raise LabUnavailable(reason)
    tree = place / "tree"
    progress.stage(f"guest: fetching and installing {len(packages(cloud_init))} packages and what they need")
    build.bootstrap(Recipe("trixie", packages(cloud_init)), tree, progress)
    _settle(tree)
    progress.stage("guest: disk image")
    raw = place / "disk.raw"
    _partition(raw)
    _fill_esp(tree, raw)
    _fill_root(tree, raw)
    disk = place / "disk.qcow2"
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", str(raw), str(disk))
    disk.chmod(0o444)
    raw.unlink()
    shutil.rmtree(tree)
    progress.stage(f"guest: disk built, {disk.stat().st_size >> 20} MiB")


def _run(program: str, *arguments: str, stdin: str = "") -> None:
    """Raises LabError with what the program said."""
    command = [build.which(program) or program, *arguments]
    # mtools would refuse a partition that has no geometry of a floppy's.
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise LabError(f"{program} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")


def _settle(tree: Path) -> None:
    """Write the files, mask and enable units, and take out what only costs space."""
    for name, text in FILES.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
    # Else mmdebstrap's copy would come before a system.hostname credential (hostname(5)).
    (tree / "etc/hostname").unlink(missing_ok=True)
    units = tree / "etc/systemd/system"
    for unit in _MASKED.split():
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in _MASKED_GENERATORS.split():
        (generators / generator).symlink_to("/dev/null")
    (units / "multi-user.target.wants/ssh.service").unlink(missing_ok=True)
    for target, wanted in _WANTED.items():
        (units / target).mkdir(exist_ok=True)
        for unit in wanted:
            link = units / target / unit
            link.unlink(missing_ok=True)
            below = "etc" if (units / unit).exists() else "usr/lib"
            link.symlink_to(f"/{below}/systemd/system/{unit}")
    shadow = tree / "etc/shadow"
    shadow.write_text(re.sub(r"^root:[^:]*:", "root::", shadow.read_text(), flags=re.M))
    for useless in ("var/lib/apt/lists", "var/cache/apt", "usr/lib/udev/hwdb.d", "usr/lib/udev/hwdb.bin"):
        _remove(tree / useless)
    for name in ("etc", "var"):  # younger than /usr: nothing needs updating at the first boot
        (tree / name / ".updated").write_text("")


def _remove(what: Path) -> None:
    if what.is_dir():
        shutil.rmtree(what)
    else:
        what.unlink(missing_ok=True)


def _partition(raw: Path) -> None:
    with open(raw, "wb") as file:
        file.truncate(_DISK_MIB << 20)
    # The type of an EFI system partition; active for syslinux's boot code.
    script = (
        "label: dos\n"
        f"start={_ESP_START_MIB}MiB, size={_ESP_MIB}MiB, type=ef, bootable\n"
        f"start={_ESP_START_MIB + _ESP_MIB}MiB, type=83\n"
    )
    _run("sfdisk", "--quiet", str(raw), stdin=script)
    code = Path("/usr/lib/SYSLINUX/mbr.bin").read_bytes()[:440]
    with open(raw, "r+b") as file:
        file.write(code)


def _fill_esp(tree: Path, raw: Path) -> None:
    kernel = build.kernel_release(tree)
    files = raw.parent / "esp"
    contents: dict[str, bytes] = {
        "vmlinuz": (tree / f"boot/vmlinuz-{kernel}").read_bytes(),
        "initrd": initramfs.mounting_root(tree, kernel, "$(findfs LABEL=root)", _MODULES),
        "EFI/BOOT/BOOTX64.EFI": (tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi").read_bytes(),
        "loader/loader.conf": b"timeout 0\n",
        "loader/entries/debian.conf": _LOADER_ENTRY.encode(),
        "syslinux.cfg": _SYSLINUX.encode(),
    }
    for name, data in contents.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(data)
    partition = f"{raw}@@{_ESP_START_MIB}M"
    sectors = str(_ESP_MIB << 11)
    hidden = str(_ESP_START_MIB << 11)
    _run("mformat", "-i", partition, "-T", sectors, "-H", hidden, "-h", "255", "-s", "63", "-v", "ESP", "::")
    _run("mcopy", "-s", "-i", partition, *sorted(map(str, files.iterdir())), "::")
    _run("syslinux", "--install", "--offset", str(_ESP_START_MIB << 20), str(raw))
    shutil.rmtree(files)
    # They are in the other partition now.
    shutil.rmtree(tree / "boot")
    (tree / "boot").mkdir()


def _fill_root(tree: Path, raw: Path) -> None:
    start = _ESP_START_MIB + _ESP_MIB
    options = f"lazy_itable_init=1,offset={start << 20}"
    blocks = f"{(_DISK_MIB - start) << 10}k"
    wanted: Sequence[str] = ("-q", "-F", "-t", "ext4", "-L", "root", "-O", "^has_journal,^metadata_csum,^orphan_file")
    _run("mke2fs", *wanted, "-E", options, "-d", str(tree), "-r", "1", "-m", "0", str(raw), blocks)


if __name__ == "__main__":
    print(json.dumps({"disk": str(path(cloud_init="--cloud-init" in sys.argv, progress=Progress()))}))
