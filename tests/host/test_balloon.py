# SPDX-License-Identifier: LGPL-2.1-or-later
"""Balloons of real guests: by hand and by the host's need, with what the kernel says of QEMU's memory."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

LINUX = """
[machine]
type = "pc-q35-7.2"
kernel = "/vmlinuz"
initrd = "/var/lib/kvmsup-demo/initramfs"
cmdline = "console=ttyS0 quiet panic=-1"
[memory]
size = "512M"
[memory.balloon]
min = "192M"
"""
MIB = 1 << 20
# Takes memory until the host has `sys.argv[1]` MiB available, and keeps it.
EATER = """
import sys, time
left, held = int(sys.argv[1]) << 20, []
while True:
    with open("/proc/meminfo") as file:
        lines = [line.split() for line in file]
    over = next(int(line[1]) << 10 for line in lines if line[0] == "MemAvailable:") - left
    if over <= 0:
        time.sleep(600)
    held.append(b"x" * min(64 << 20, max(1 << 20, over)))
"""


@pytest.fixture(scope="module")
def three(host: Host) -> Host:
    """A host with a guest for each kind of balloon, and one that has no driver for it."""
    guests.keep_supervisor(host)
    guests.install_demo(host)
    tiny = guests.SHARED.replace("64M", "256M") + '[memory.balloon]\nmin = "128M"\n'
    guests.configure(host, {"hand": LINUX, "auto": LINUX + "auto = true\n", "tiny": tiny})
    host.run("systemctl start kvm@hand kvm@auto kvm@tiny", timeout=240)
    for name in ("hand", "auto"):
        guests.booted(host, name)
    return host


def told(host: Host, name: str) -> list[str]:
    """The journal's lines on the guest's balloon."""
    return [line for line in guests.said(host, name).splitlines() if line.startswith("balloon: ")]


def test_a_balloon_that_gives_nothing_back_is_refused(host: Host) -> None:
    host.put((LINUX.replace("[memory.b", 'hugepages = "2M"\n[memory.b')).encode(), "/etc/kvmsup/wrong.toml")
    found = host.run("kvmsup check wrong; rm /etc/kvmsup/wrong.toml", check=False).stderr
    assert "memory.balloon: a balloon gives nothing back from hugepages" in found


def test_by_hand_down_and_up(three: Host) -> None:
    assert guests.kvmsup(three, "balloon hand")["actual"] == 512 * MIB
    down = three.run("kvmsup balloon hand 256M", timeout=120)
    assert down.stdout.startswith("hand: 256M of 512M (min 192M, by hand), the guest has ")
    report = guests.kvmsup(three, "status hand")["balloon"]
    assert report["actual"] == 256 * MIB
    assert 50 * MIB < report["available"] < 256 * MIB
    assert "balloon    256M of 512M" in three.run("kvmsup status hand").stdout
    up = guests.kvmsup(three, "balloon hand 512M")
    assert (up["actual"], up["asked"]) == (512 * MIB, 512 * MIB)
    assert up["available"] > 350 * MIB


def test_bounds(three: Host) -> None:
    for asked, why in (
        ("hand 128M", "128M is not a size for hand"),
        ("hand 1G", "192M (memory.balloon.min) to 512M (memory.size)"),
        ("auto 256M", "memory.balloon.auto = false"),
        ("demo", "guest demo does not run"),
        ("hnd", "did you mean hand?"),
    ):
        refused = three.run(f"kvmsup balloon {asked}", check=False)
        assert (refused.rc, refused.stdout) == (1, "")
        assert why in refused.stderr


def test_without_a_driver_it_is_told(three: Host) -> None:
    assert "no balloon driver in the guest answers" in three.run("kvmsup balloon tiny").stdout
    asked = three.run("kvmsup balloon tiny 128M", check=False, timeout=60)
    assert asked.rc == 1
    assert "nothing in the guest answers" in asked.stderr
    assert guests.kvmsup(three, "balloon tiny")["available"] is None


def test_automatic_by_the_hosts_need(three: Host) -> None:
    assert told(three, "auto") == []
    assert guests.kvmsup(three, "balloon auto")["actual"] == 512 * MIB
    three.put(EATER.encode(), "/root/eater.py")
    three.run("systemd-run --unit=eater --collect python3 /root/eater.py 170")
    three.wait_for_line("--unit=kvm@auto", "^balloon: .*smaller", times=2, timeout=90)
    first = told(three, "auto")[0]
    assert first.startswith("balloon: 512M → 461M, smaller: the host has ")
    assert "under its mark of 256M; the guest has " in first
    # Killed while the guest is small, the next supervisor goes on from there.
    three.run("systemctl kill -s KILL kvmsup")
    three.run("systemctl stop eater")
    three.wait_for_line("--unit=kvm@auto", "^balloon: .* 512M, larger", timeout=90)
    three.wait_for("kvmsup balloon auto | grep -q '^auto: 512M of 512M'", timeout=30)
    # With nothing to do the guest is left to sleep, and nobody else's balloon has been touched.
    interval = (
        "import sys; sys.path.insert(0, '/usr/lib/kvmsup'); from kvmsup.effects import balloon;"
        f" talk = balloon.monitor('', 'auto', {guests.pid(three, 'auto')}, 'admin', 5); print(balloon.interval(talk))"
    )
    three.wait_for(f'[ "$(python3 -c "{interval}")" = 0 ]', timeout=30)
    assert told(three, "hand") == told(three, "tiny") == []
    assert guests.kvmsup(three, "balloon hand")["actual"] == 512 * MIB


def test_no_alarm_without_such_a_guest(three: Host) -> None:
    armed = "ls -l /proc/$(systemctl show -P MainPID kvmsup)/fd | grep -q /proc/pressure/memory"
    three.run(armed)
    guests.kill(three, "auto")
    three.wait_for(f"! {{ {armed}; }}", timeout=30)
    for name in ("hand", "tiny"):
        guests.kill(three, name)
