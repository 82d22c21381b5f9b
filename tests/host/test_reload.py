# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files below /etc/kvmsup: picked up when edited, harmless to what runs, refused when stale."""

from __future__ import annotations

import time

import pytest

from tests.host import guests
from tests.lab.host import Host

DROPIN = "/run/systemd/generator/kvm@{name}.service.d/50-kvmsup.conf"


@pytest.fixture(scope="module", autouse=True)
def supervised(host: Host) -> None:
    guests.keep_supervisor(host)


@pytest.fixture(autouse=True)
def watching(host: Host) -> None:
    host.run("systemctl start kvmsup-reload.path")
    host.wait_for("[ $(systemctl show -P SubState kvmsup-reload.path) = waiting ]")


def loaded(host: Host, name: str, size: str) -> float:
    """Seconds until systemd itself has the guest with `size` in its command line."""
    began = time.monotonic()
    host.wait_for(f"systemctl show -P ExecStart kvm@{name} | grep -q 'size={size}'", timeout=180)
    return time.monotonic() - began


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param("cat > /etc/kvmsup/edited.toml", id="add"),
        pytest.param("cat > /etc/kvmsup/edited.toml", id="edit"),
        pytest.param("cat > /tmp/new; mv /tmp/new /etc/kvmsup/edited.toml", id="rename-over"),
    ],
)
def test_an_edit_is_picked_up(host: Host, edit: str) -> None:
    size = f"{16 + int(time.monotonic()) % 1000}M"
    host.run(edit, stdin=guests.SHARED.replace("64M", size))
    loaded(host, "edited", size)


def test_a_reload_that_follows_no_edit_reads_no_toml(host: Host) -> None:
    """And comes to the same drop-ins, which it has from where the reload of the edit has kept them."""
    host.run("cat > /etc/kvmsup/edited.toml", stdin=guests.SHARED)
    host.wait_for("[ -e /var/cache/kvmsup/edited ] && [ $(systemctl show -P ActiveState kvmsup-reload) = inactive ]")
    generate = "rm -rf /run/made; mkdir /run/made; strace -f -o /run/trace -e openat {} /run/made"
    program = generate.format("/usr/lib/systemd/system-generators/kvmsup-generator")
    compare = "diff -r /run/made/kvm@edited.service.d /run/systemd/generator/kvm@edited.service.d"
    host.run(f"{program}; grep -q kvmsup/edited /run/trace; ! grep tomllib /run/trace; {compare}")
    host.run("rm /var/cache/kvmsup/edited")
    host.run(f"{program}; grep -q tomllib /run/trace; {compare}")
    host.run("systemctl daemon-reload; test ! -e /var/cache/kvmsup/edited")
    assert "guest=edited" in host.run("systemctl cat kvm@edited").stdout


def test_a_deleted_file_is_picked_up(host: Host) -> None:
    host.run("rm -f /etc/kvmsup/edited.toml")
    host.wait_for(f"[ ! -e {DROPIN.format(name='edited')} ]")
    host.wait_for("systemctl show -P ExecStart kvm@edited | grep -q explain")


def test_a_burst_of_edits_ends_in_the_right_state_and_without_a_loop(host: Host) -> None:
    count = "journalctl -b -o cat -u kvmsup-reload.service | grep -c '^Finished'"
    before = int(host.run(count, check=False).stdout)
    script = 'for i in $(seq 101 150); do echo "$toml" | sed "s/64M/${i}M/" > /etc/kvmsup/burst.toml; sleep 0.01; done'
    host.run(f"toml=$(cat); {script}", stdin=guests.SHARED)
    loaded(host, "burst", "150M")
    settled = "systemctl show -P ActiveState kvmsup-reload.service | grep -q ^inactive$"
    host.wait_for(f"{settled} && sleep 2 && {settled}", timeout=180)
    after = int(host.run(count).stdout)
    host.run("sleep 4")
    assert int(host.run(count).stdout) == after
    assert 0 < after - before < 20


def test_a_broken_file_harms_only_its_own_guest(host: Host) -> None:
    guests.configure(host, {"good": guests.SHARED, "bad": guests.SHARED.replace('"64M"', '"64MB"')})
    guests.start(host, "good")
    refused = guests.start(host, "bad", check=False)
    assert refused.rc == 1
    finding = (
        "/etc/kvmsup/bad.toml:6:8: memory.size: "
        '"64MB" has a unit that reads as bytes to the base 1000 here and 1024 there\n'
        '  6 | size = "64MB"\n'
        "    |        ^^^^^^\n"
        '  hint: write "64M": K, M, G and T count to the base 1024\n'
    )
    assert finding in guests.said(host, "bad")
    assert finding in host.run("journalctl --sync; journalctl -b -o cat -u kvm-setup@bad").stdout
    assert host.run("kvmsup check bad", check=False).stderr == finding
    loading = "journalctl -b -o cat -t kvmsup-generator KVMSUP_GUEST=bad"
    assert finding.splitlines()[0] in host.run(loading).stdout.splitlines()
    guests.kill(host, "good")


def test_a_stale_dropin_is_refused(host: Host) -> None:
    guests.configure(host, {"stale": guests.SHARED})
    host.put(guests.SHARED.replace("64M", "96M").encode(), "/etc/kvmsup/stale.toml")
    assert guests.start(host, "stale", check=False).rc == 1
    sentence = "/etc/kvmsup/stale.toml was edited since systemd loaded it\n  hint: systemctl daemon-reload\n"
    assert sentence in guests.said(host, "stale")
    host.run("systemctl daemon-reload")
    guests.start(host, "stale")
    assert "size=96M" in host.run(f"tr '\\0' ' ' < /proc/{guests.pid(host, 'stale')}/cmdline").stdout
    guests.kill(host, "stale")


def test_a_guest_without_a_file_says_so(host: Host) -> None:
    guests.configure(host, {"webserver": guests.SHARED})
    assert guests.start(host, "websrver", check=False).rc == 1
    sentence = "there is no guest websrver: no /etc/kvmsup/websrver.toml\n  hint: did you mean kvm@webserver?\n"
    assert sentence in guests.said(host, "websrver")


def running(host: Host, name: str) -> dict[str, str]:
    """What must not change: process, place in the tree, masks, limits."""
    process = guests.pid(host, name)
    wanted = ("MainPID", "ControlGroup", "ActiveState", "InvocationID", "MemoryMax", "AllowedCPUs", "TasksMax")
    facts = guests.show(host, f"kvm@{name}", *wanted) | guests.allowed(host, process)
    group = f"/sys/fs/cgroup{facts['ControlGroup']}"
    limits = f"cd {group}; grep -s . cpuset.cpus cpuset.cpus.effective memory.max pids.max cpu.max cgroup.procs"
    facts["cgroup"] = host.run(limits, check=False).stdout
    facts["limits"] = host.read(f"/proc/{process}/limits")
    return facts


def test_a_daemon_reload_changes_nothing_of_what_runs(host: Host) -> None:
    """Invariant 6: with the file edited, broken and gone; and the guest can still be stopped."""
    host.run("mkdir -p /etc/systemd/system/kvm@.service.d")
    host.put(b"[Service]\nTimeoutStopSec=12\n", "/etc/systemd/system/kvm@.service.d/impatient.conf")
    guests.configure(host, {"steady": guests.TINY})
    guests.start(host, "steady")
    before = running(host, "steady")
    for text in (guests.TINY.replace("64M", "96M").replace("dedicated", "shared"), "not = [toml"):
        guests.configure(host, {"steady": text})
        assert running(host, "steady") == before
    host.run("rm /etc/kvmsup/steady.toml; systemctl daemon-reload")
    assert running(host, "steady") == before
    assert guests.pages(host) == (32, 0)
    assert [one["name"] for one in guests.kvmsup(host, "list")["guests"] if one["active"] == "active"] == ["steady"]
    host.run("systemctl stop kvm@steady", timeout=180)
    guests.released(host, "steady")
    assert "cutting its power" in guests.said(host, "steady")  # firmware; what counts is that it was asked
    assert guests.pages(host) == (0, 0)
    assert guests.leftovers(host) == []
