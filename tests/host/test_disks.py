# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks of real guests: made, handed over, written from inside, refused to others, and UEFI with its own NVRAM."""

from __future__ import annotations

import re

import pytest

from tests.host import guests
from tests.lab.host import Host
from tests.unit.real_qemu import boot_sector

pytestmark = pytest.mark.linux_guests

# The demo guest with a disk of each kind.
DISKS = """
[iothread.io0]
[disk.own]
path = "own.raw"
format = "raw"
size = "16M"
iothread = "io0"
[disk.copy]
path = "copy.qcow2"
format = "qcow2"
base = "/srv/base.raw"
base-format = "raw"
size = "32M"
[disk.secret]
path = "/root/secret.img"
format = "raw"
[disk.device]
path = "{device}"
format = "raw"
iothread = "io0"
[disk.fixed]
path = "/srv/base.raw"
format = "raw"
read-only = true
"""
BOOT = guests.FIRMWARE + '[disk.root]\npath = "/root/boot.img"\nformat = "raw"\n'
# Emulated: an emulating QEMU 10.0 ends when OVMF runs in a guest of the KVM that it emulates, 3 of 3 times (assertion
# bql_locked() in tcg_handle_interrupt).
UEFI = guests.FIRMWARE.replace("[memory]", 'firmware = "uefi"\naccel = "tcg"\n[memory]').replace('"64M"', '"128M"')
TYPED = "; ".join(
    [
        'for d in /sys/block/vd*; do echo "disk=${d##*/}/$(cat $d/serial)/$(cat $d/size)/$(cat $d/ro)"; done',
        *(f"echo from-the-guest | dd of=/dev/vd{letter} conv=fsync 2>/dev/null" for letter in "abcd"),
        "echo wrote=$(dd if=/dev/vdb bs=512 skip=1 count=1 2>/dev/null | head -c 4)",
    ]
)


@pytest.fixture(scope="module")
def disks(host: Host) -> Host:
    """A host on which guest demo runs with a disk of each kind."""
    guests.install_demo(host)
    host.put(b"base".ljust(4 << 20, b"+"), "/srv/base.raw", mode=0o644)
    host.run("truncate -s 8M /root/secret.img /root/device.img; chmod 600 /root/*.img; modprobe loop")
    device = host.run("losetup --find --show /root/device.img").stdout.strip()
    text = host.read("/etc/kvmsup/demo.toml") + DISKS.format(device=device)
    guests.configure(host, {"demo": text, "boot": BOOT, "efi": UEFI})
    guests.keep_supervisor(host)
    guests.start(host, "demo")
    guests.booted(host, "demo")
    return host


def test_the_guest_sees_them_in_the_order_of_its_file_and_writes(disks: Host) -> None:
    said = guests.inside(disks, "demo", TYPED, timeout=240)
    assert re.findall(r"^disk=(\S+)", said, re.MULTILINE) == [
        *("vda/own/32768/0", "vdb/copy/65536/0", "vdc/secret/16384/0"),
        *("vdd/device/16384/0", "vde/fixed/8192/1"),
    ]
    assert "wrote=++++" in said
    for path in ("/root/secret.img", "/root/device.img", "/var/lib/kvmsup/demo/own.raw"):
        assert disks.run(f"head -c 14 {path}").stdout == "from-the-guest"
    # What it was copied from is what it was.
    assert disks.run("head -c 5 /srv/base.raw").stdout == "base+"


def test_nothing_was_granted(disks: Host) -> None:
    """QEMU has the open files. Its user has no right to any of them, and what is its own nobody else reads."""
    process = guests.pid(disks, "demo")
    opened = disks.run(f"readlink /proc/{process}/fd/*").stdout.split()
    assert {"/root/secret.img", "/srv/base.raw", "/var/lib/private/kvmsup/demo/own.raw"} <= set(opened)
    assert any("/loop" in one for one in opened)
    assert disks.run("stat -c '%U %a' /root/secret.img").stdout == "root 600\n"
    modes = disks.run("stat -Lc %a /var/lib/kvmsup/demo /var/lib/kvmsup/demo/*").stdout.split()
    assert modes == ["700", "600", "600"]
    user = disks.run(f"stat -c %u /proc/{process}").stdout.strip()
    assert 61184 <= int(user) <= 65519
    tried = disks.run(
        f"nsenter -t {process} -m setpriv --reuid {user} --clear-groups cat /root/secret.img", check=False
    )
    assert tried.rc and "Permission denied" in tried.stderr
    # What attach opens of the host's devices, in the unit's control group.
    allowed = disks.run("systemctl show --value -p DeviceAllow kvm@demo").stdout
    assert re.search(r"^/dev/loop\d+ rw$", allowed, re.MULTILINE)


def test_io_uring_where_kernel_and_qemu_have_it(disks: Host) -> None:
    assert guests.claim(disks, "demo")["AIO"] == "io_uring"
    assert "[io_uring]" in disks.run(f"readlink /proc/{guests.pid(disks, 'demo')}/fd/*").stdout


def test_a_disk_of_a_guest_is_no_other_guests(disks: Host) -> None:
    """By whatever path it is named."""
    disks.run("ln -sf /root/secret.img /srv/link.img")
    guests.configure(disks, {"thief": guests.SHARED + '[disk.root]\npath = "/srv/link.img"\nformat = "raw"\n'})
    assert guests.start(disks, "thief", check=False).rc == 1
    said = guests.said(disks, "thief")
    assert "disk.root: guest demo has the same one as its disk.secret" in said
    assert "hint: stop that guest, or make it read-only in both" in said
    assert not disks.run("ls /run/kvmsup/claims/thief.env", check=False).stdout
    guests.configure(disks, {"thief": guests.SHARED + '[disk.root]\npath = "/dev/vda"\nformat = "raw"\n'})
    assert guests.start(disks, "thief", check=False).rc == 1
    assert "/dev/vda is in use by the host itself: mounted, or a part of something" in guests.said(disks, "thief")


def test_they_stay_when_the_guest_stops(disks: Host) -> None:
    guests.stop(disks, "demo")
    assert guests.leftovers(disks) == []
    assert "from-the-guest" in disks.run("head -c 14 /var/lib/kvmsup/demo/own.raw").stdout
    held = disks.run("fuser /root/secret.img $(losetup -j /root/device.img -O NAME -n)", check=False).stdout
    assert not held.strip()
    # A start of somebody else who may read it only: a lock, or an owner, would be in the way.
    assert disks.run("qemu-img info -f raw /root/secret.img").rc == 0


def test_a_guest_boots_from_what_only_root_may_open(disks: Host) -> None:
    disks.put(boot_sector("booted from its disk\r\n"), "/root/boot.img", mode=0o600)
    guests.start(disks, "boot")
    disks.wait_for_line("--unit=kvm@boot", "booted from its disk")
    guests.kill(disks, "boot")
    assert disks.run("stat -c '%U %a' /root/boot.img").stdout == "root 600\n"


def test_uefi_with_an_nvram_of_its_own(disks: Host) -> None:
    guests.start(disks, "efi")
    disks.wait_for_line("--unit=kvm@efi", "BdsDxe", timeout=400)
    assert disks.run("stat -Lc '%a' /var/lib/kvmsup/efi/nvram.fd").stdout == "600\n"
    claim = guests.claim(disks, "efi")
    template = claim["NVRAM_TEMPLATE"]
    assert claim["FIRMWARE"].startswith("/usr/share/OVMF/") and "secboot" not in claim["FIRMWARE"]
    assert disks.run(f"cmp {template} /var/lib/kvmsup/efi/nvram.fd", check=False).rc == 1
    guests.kill(disks, "efi")


def test_no_room_for_an_image(disks: Host) -> None:
    """In the very words, and nothing of it stays."""
    disks.run("mkdir -p /srv/full; mount -t tmpfs -o size=2M none /srv/full; mkdir -p /var/lib/private/kvmsup/tight")
    disks.run("mount --bind /srv/full /var/lib/private/kvmsup/tight")
    text = '[disk.root]\npath = "root.raw"\nformat = "raw"\nbase = "/srv/base.raw"\n'
    guests.configure(disks, {"tight": guests.SHARED + text})
    try:
        assert guests.start(disks, "tight", check=False).rc == 1
        assert "No space left on device" in guests.said(disks, "tight")
        assert disks.run("ls -A /srv/full").stdout == ""
    finally:
        disks.run("umount /var/lib/private/kvmsup/tight /srv/full")
