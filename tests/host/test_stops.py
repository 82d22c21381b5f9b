# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Linux guest's own ends, stops of one that does not hear, floods on its consoles, and stops during a start."""

from __future__ import annotations

import json

import pytest

from tests.host import guests
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

QMP = """
import sys; sys.path.insert(0, "/usr/lib/kvmsup")
from kvmsup.effects import qmp
with qmp.Monitor(f"/run/kvmsup/guests/demo/admin.qmp", int(sys.argv[1])) as monitor:
    monitor.negotiate()
    print(monitor.execute(sys.argv[2]))
"""


@pytest.mark.parametrize("step", ["attach.verify", "attach.look-again"])
def test_a_stop_during_the_start(host: Host, step: str) -> None:
    """attach hangs: the stop wakes it up, and it ends QEMU. Nobody hears the button: patience is short."""
    host.run("mkdir -p /run/systemd/system/kvm@tiny.service.d")
    lines = f"[Service]\nEnvironment=KVMSUP_FAULT={step}:stop\nTimeoutStopSec=16\n"
    host.put(lines.encode(), "/run/systemd/system/kvm@tiny.service.d/fault.conf")
    guests.configure(host, {"tiny": guests.TINY})
    host.run("systemctl start --no-block kvm@tiny")
    host.wait_for("grep -l '^State:.T' /proc/[0-9]*/status | grep -q .", timeout=240)
    host.run("systemctl stop kvm@tiny", timeout=120)
    assert guests.show(host, "kvm@tiny", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    guests.released(host, "tiny")
    assert guests.leftovers(host) == []


@pytest.fixture(scope="module")
def demo(host: Host) -> Host:
    """A host on which the demo guest has come up."""
    guests.install_demo(host)
    guests.keep_supervisor(host)
    host.put(QMP.encode(), "/root/qmp.py")
    shipped = guests.show(host, "kvm@demo", "LogRateLimitBurst", "LogRateLimitIntervalUSec")
    assert shipped == {"LogRateLimitBurst": "1500", "LogRateLimitIntervalUSec": "30s"}
    # An emulated guest is too slow for that.
    host.run("mkdir -p /run/systemd/system/kvm@demo.service.d")
    host.put(
        b"[Service]\nLogRateLimitBurst=10\nLogRateLimitIntervalSec=5s\n",
        "/run/systemd/system/kvm@demo.service.d/flood.conf",
    )
    host.run("systemctl daemon-reload")
    guests.start(host, "demo")
    guests.booted(host, "demo")
    return host


def test_a_guest_chooses_no_priorities(demo: Host) -> None:
    """Those of emergencies are written to every terminal of a host."""
    guests.inside(demo, "demo", 'echo "<0>the sky is falling" >/dev/ttyS0')
    demo.wait_for_line("--unit=kvm@demo", "the sky is falling")
    lines = demo.run("journalctl -b -u kvm@demo -o json --grep 'the sky'").stdout.splitlines()
    found = {(one["PRIORITY"], one["MESSAGE"]) for one in map(json.loads, lines)}
    assert found == {("6", "<0>the sky is falling")}


def test_the_second_at_the_console_is_told_who_has_it(demo: Host) -> None:
    demo.run("{ { sleep 15; printf '\\035'; } | kvmsup console demo; } >/dev/null 2>&1 & sleep 3")
    told = demo.run("kvmsup console demo </dev/null", check=False)
    assert told.rc == 1
    assert told.stderr.startswith("kvmsup: the console of demo is in use by process "), told.stderr
    assert "kvmsup console demo" in told.stderr
    demo.run("sleep 15")


def test_a_flood_is_dropped_and_counted(demo: Host) -> None:
    """On both consoles, with nobody at one of them: the guest goes on, the host's journal keeps what others say."""
    # Each ends by itself: the shell, on one of these terminals, may come to nothing meanwhile.
    floods = "timeout 20 yes flood >/dev/ttyS0 & timeout 20 yes flood >/dev/hvc0 & wait"
    guests.type_in(demo, "demo", f"{floods}; sleep 10; echo after the flood >/dev/ttyS0")
    demo.run("logger said during the flood")
    demo.wait_for_line("--unit=kvm@demo", "after the flood", timeout=120)
    assert "said during the flood" in demo.run("journalctl --sync; journalctl -b -t root -o cat").stdout
    dropped = demo.run("journalctl -b -u systemd-journald -o cat | grep '^Suppressed .* kvm@demo.service'").stdout
    print(dropped)
    assert guests.inside(demo, "demo", "echo 1+1=$((1+1))") == "1+1=2"


def test_a_reboot_is_the_same_service(demo: Host) -> None:
    process = guests.pid(demo, "demo")
    guests.type_in(demo, "demo", "reboot -f")
    guests.booted(demo, "demo", 2)
    assert guests.pid(demo, "demo") == process
    assert guests.kvmsup(demo, "status demo")["drift"] is False


def test_a_paused_guest_goes_on_to_shut_down(demo: Host) -> None:
    demo.run(f"python3 /root/qmp.py {guests.pid(demo, 'demo')} stop")
    guests.stop(demo, "demo")
    said = guests.said(demo, "demo")
    assert "the guest was paused: it goes on, to shut down" in said
    assert "the power button was pressed, powering off" in said
    assert "the guest has shut down" in said.splitlines()
    assert guests.show(demo, "kvm@demo", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_a_panic_is_a_failure_with_its_reason(demo: Host) -> None:
    if guests.state(demo, "kvm@demo") != "active":
        guests.start(demo, "demo")
        guests.booted(demo, "demo")
    guests.type_in(demo, "demo", "echo c >/proc/sysrq-trigger")
    demo.wait_for("[ $(systemctl show -P ActiveState kvm@demo) = failed ]", timeout=120)
    assert guests.show(demo, "kvm@demo", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "1"}
    assert "the guest's kernel has panicked" in demo.run("systemctl status kvm@demo", check=False).stdout
    guests.released(demo, "demo")
    assert guests.leftovers(demo) == []
    demo.run("systemctl reset-failed kvm@demo")


def test_restart_on_failure_is_after_a_panic_and_not_after_a_poweroff(demo: Host) -> None:
    demo.put(b"[Service]\nRestart=on-failure\n", "/run/systemd/system/kvm@demo.service.d/restart.conf")
    demo.run("systemctl daemon-reload")
    guests.start(demo, "demo")
    guests.booted(demo, "demo")
    guests.type_in(demo, "demo", "echo c >/proc/sysrq-trigger")
    # Not by NRestarts=, which is no longer 1 once the unit is active again.
    restarts = "journalctl -b -u kvm@demo | grep -c 'Scheduled restart job'"
    demo.wait_for(f"[ $({restarts}) = 1 ] && [ $(systemctl show -P ActiveState kvm@demo) = active ]", timeout=120)
    guests.booted(demo, "demo")
    guests.type_in(demo, "demo", "poweroff -f")
    demo.wait_for("[ $(systemctl show -P ActiveState kvm@demo) = inactive ]", timeout=60)
    assert guests.show(demo, "kvm@demo", "Result") == {"Result": "success"}
    assert demo.run(restarts).stdout == "1\n"
    guests.released(demo, "demo")
    assert guests.leftovers(demo) == []
