# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real Debian guest from `kvmsup new` to its power button, and what it is told at its first boot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import guest_disk, guests
from tests.host.conftest import make_lab
from tests.lab.host import Host, Lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKvmsupTestsKeyKvmsupTestsKeyKvmsupTestsK me@lab"
SECRET = "no-one-may-read-this-4711"
TOLD = """
[credentials]
system.hostname = "/etc/kvmsup/deb.hostname"
ssh.authorized_keys.root = "/etc/kvmsup/deb.key"
secret = "/etc/kvmsup/deb.secret"
"""


def put_secrets(host: Host) -> None:
    for name, text in {"hostname": "firstborn", "key": f"{KEY}\n", "secret": SECRET}.items():
        host.put(text.encode(), f"/etc/kvmsup/deb.{name}", mode=0o600)


def nowhere(host: Host, guest: str) -> None:
    """The secret is in no command line, environment, unit, drop-in or journal, on the whole host."""
    host.run("journalctl --sync")
    for where in (
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null",
        f"systemctl show kvm@{guest} kvm-setup@{guest}; systemctl cat kvm@{guest}",
        "journalctl --no-pager --boot --all",
    ):
        # The pattern is not in grep's own command line.
        found = host.run(f"({where}) | tr '\\0' '\\n' | grep -c 'no-one-may-read-this-471[1]'", check=False)
        assert found.stdout.strip() == "0", where


@pytest.fixture
def debian_host(lab: Lab, deb: Path) -> Iterator[Host]:
    with lab.fresh(guest_disk.snapshot(lab, lab.installed(deb))) as host:
        yield host


def test_a_debian_guest_from_new_to_its_power_button(debian_host: Host) -> None:
    host = debian_host
    image = guest_disk.put(host)
    put_secrets(host)
    new = f"new deb --image {image} --user-net --memory 768M --vcpus 2 --ssh-key /etc/kvmsup/deb.key"
    report = guests.kvmsup(host, new)
    assert report["written"] is True
    assert "pc-q35-10.0" in report["toml"]
    # Of a line of the file; that it is not loaded yet is said of slow hosts too.
    assert not [one for one in report["diagnostics"] if one["line"] and one["severity"] != "note"]
    again = host.run(f"kvmsup {new}", check=False)
    assert (again.rc, again.stderr.splitlines()[0]) == (1, "kvmsup: /etc/kvmsup/deb.toml is there already")
    host.run("cat >>/etc/kvmsup/deb.toml; systemctl daemon-reload", stdin=TOLD)
    guests.start(host, "deb")
    guest_disk.up(host, "deb")
    assert f"{guest_disk.UP}: firstborn" in guests.said(host, "deb")
    told = guests.inside(
        host, "deb",
        "systemd-creds --system cat secret; cat /root/.ssh/authorized_keys;"
        " stat -c %a:%n /run/credentials/@system;"
        " lsblk -rno NAME,LABEL,SERIAL /dev/vda2 /dev/vdb;"
        " mount -r /dev/disk/by-label/CIDATA /mnt && cat /mnt/meta-data /mnt/user-data; stat -c %U:%a /mnt/user-data",
    )  # fmt: skip
    assert told.splitlines() == [
        SECRET,
        KEY,
        "700:/run/credentials/@system",
        "vda2 root ",
        "vdb CIDATA cidata",
        'instance-id: "kvmsup-deb"',
        'local-hostname: "deb"',
        "#cloud-config",
        "ssh_authorized_keys:",
        f"  - {json.dumps(KEY)}",
        "root:400",
    ]
    nowhere(host, "deb")
    guests.stop(host, "deb")
    assert guests.show(host, "kvm@deb", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert guests.leftovers(host) == []


@pytest.mark.parametrize(
    ("broken", "what", "hint"),
    [
        (
            "rm /etc/kvmsup/deb.secret",
            "credentials.secret: /etc/kvmsup/deb.secret: No such file or directory",
            "put the file there, or take the key out",
        ),
        (
            "truncate -s 2M /etc/kvmsup/deb.secret",
            "credentials.secret: /etc/kvmsup/deb.secret is too large: systemd takes 1M for all of a guest's",
            "hand over large files on a disk",
        ),
        (
            "mv /usr/bin/xorriso /usr/bin/xorriso.away",
            "cloud-init: its seed is made by xorriso, and there is no /usr/bin/xorriso",
            "apt install xorriso",
        ),
    ],
)
def test_a_start_that_systemd_would_refuse_without_a_reason(host: Host, broken: str, what: str, hint: str) -> None:
    put_secrets(host)
    guests.configure(host, {"tiny": f"{guests.SHARED}{TOLD}[cloud-init]\n"})
    host.run(broken)
    try:
        assert guests.start(host, "tiny", check=False).rc != 0
        assert f"{what}\n  hint: {hint}" in guests.said(host, "tiny")
        (found,) = guests.kvmsup(host, "check tiny")["diagnostics"][:1]
        assert found["hint"] == hint
    finally:
        host.run("[ ! -e /usr/bin/xorriso.away ] || mv /usr/bin/xorriso.away /usr/bin/xorriso")
        host.run("systemctl reset-failed 'kvm*'; rm /etc/kvmsup/tiny.toml; systemctl daemon-reload")


def check_the_unit_sees_them(host: Host) -> None:
    """A QEMU without a guest is enough: the sources, and the seed that is made of them in the sandbox."""
    put_secrets(host)
    host.put(f"#cloud-config\npassword: {SECRET}\n".encode(), "/etc/kvmsup/tiny.user-data", mode=0o600)
    seed = '[cloud-init]\nuser-data = "/etc/kvmsup/tiny.user-data"\n'
    guests.configure(host, {"tiny": f"{guests.SHARED}{TOLD}{seed}"})
    guests.start(host, "tiny")
    owner = host.run(f"stat -c %u /proc/{guests.pid(host, 'tiny')}").stdout.strip()
    made = "/run/kvmsup/guests/tiny/seed.iso"
    assert host.run(f"stat -Lc %u:%a {made}; ls -A /run/kvmsup/guests/tiny/ | grep seed").stdout.split() == [
        f"{owner}:600",
        "seed.iso",
    ]
    read = f"xorriso -osirrox on -indev {made} -extract /user-data /run/read >/dev/null 2>&1; cat /run/read"
    assert host.run(read).stdout == f"#cloud-config\npassword: {SECRET}\n"
    nowhere(host, "tiny")
    guests.kill(host, "tiny")
    assert host.run(f"ls {made} /run/credentials/kvm@tiny.service", check=False).stdout == ""


def test_the_unit_sees_them(host: Host) -> None:
    check_the_unit_sees_them(host)


@pytest.fixture
def old_host(pytestconfig: pytest.Config, deb: Path) -> Iterator[Host]:
    lab = make_lab(pytestconfig, "bookworm", linux_guests=False)
    with lab.fresh(lab.installed(deb)) as host:
        yield host


def test_the_unit_sees_them_on_debian_12(old_host: Host) -> None:
    check_the_unit_sees_them(old_host)
