# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemctl reload of a guest: what is applied, what is refused, and what a kill in the middle leaves."""

from __future__ import annotations

from typing import Any

import pytest

from kvmsup.steps import STEPS
from tests.host import guests
from tests.host.elastic import ELASTIC, ask, edit, reload, vcpus
from tests.lab import still
from tests.lab.host import Host

TRACE = "/sys/kernel/tracing"
PINNED = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[cpu]
vcpus = 1
[placement]
cpus = "dedicated"
[placement.vcpu]
0 = "2"
[memory]
size = "64M"
"""


@pytest.fixture(scope="module", autouse=True)
def prepared(host: Host) -> None:
    guests.keep_supervisor(host)
    host.put(b"", "/run/fault.env")
    host.run("mkdir -p /run/systemd/system/kvm@elastic.service.d")
    # It has no system that would hear its power button.
    lines = b"[Service]\nEnvironmentFile=-/run/fault.env\nTimeoutStopSec=8\n"
    host.put(lines, "/run/systemd/system/kvm@elastic.service.d/fault.conf")
    guests.configure(host, {"elastic": ELASTIC, "pinned": PINNED})


@pytest.fixture
def elastic(host: Host) -> int:
    """The elastic guest runs, as it was left; the pid of its QEMU."""
    if guests.state(host, "kvm@elastic") != "active":
        guests.start(host, "elastic")
    return guests.pid(host, "elastic")


def policies(host: Host, name: str) -> str:
    process = guests.pid(host, name)
    tids = f"grep -l '^CPU 0/KVM' /proc/{process}/task/*/comm | cut -d/ -f5"
    return host.run(f"chrt -p $({tids}) | sed 's/.*: //'").stdout.replace("\n", " ").strip()


def lines(host: Host, name: str, since: str) -> list[str]:
    """What the journal shows under the guest's unit after the line `since`, of what kvmsup says."""
    text = guests.said(host, name).rpartition(since)[2]
    return [line for line in text.splitlines() if "applied" in line or "restart" in line]


def agree(host: Host, name: str) -> dict[str, Any]:
    """Whoever is asked says the same: the claim, the kernel and the supervisor."""
    assert guests.kvmsup(host, f"verify {name}")["ok"]
    host.run("systemctl reload kvmsup; sleep 2")
    assert "is back on" not in guests.said(host, name)
    found: dict[str, Any] = guests.kvmsup(host, f"status {name}")
    assert not found["drift"]
    return found


def test_all_that_can_be_live(host: Host, elastic: int) -> None:
    """Edited and reloaded at once: the file counts, not what systemd has loaded of it."""
    process = elastic
    assert guests.kvmsup(host, "status elastic")["changed"] == []
    edit(host, "elastic", ("vcpus = 2", "vcpus = 5"), ('emulator = "0"', 'emulator = "1"'))
    edit(host, "elastic", ('size = "64M"', 'size = "64M"\nksm = true'), ('min = "64M"', 'min = "64M"\nauto = true'))
    edit(host, "elastic", ("[machine]", 'description = "grown"\n[machine]\naccel = "kvm"'), ("7.2", "7.1"))
    assert [one["key"] for one in guests.kvmsup(host, "status elastic")["changed"]] == [
        *("description", "machine.type", "cpu.vcpus", "placement.emulator", "memory.ksm", "memory.balloon.auto")
    ]
    note = next(one for one in guests.kvmsup(host, "list")["guests"] if one["name"] == "elastic")
    assert {one["how"] for one in note["changed"]} == {"live", "restart"}
    assert "edited: reload" in host.run("kvmsup list").stdout
    reload(host, "elastic")
    assert guests.pid(host, "elastic") == process
    assert lines(host, "elastic", "Reloading") == [
        "description (none) → grown, applied",
        "machine.type pc-q35-7.2 → pc-q35-7.1, needs a restart",
        "cpu.vcpus 2 → 5, applied",
        "placement.emulator 0 → 1, applied",
        "memory.ksm false → true, applied",
        "memory.balloon.auto false → true, applied",
    ]
    found = guests.allowed(host, process)
    cpus = {thread: found.pop(thread) for thread in list(found) if thread.startswith("CPU ")}
    assert sorted(cpus) == [f"CPU {index}/KVM" for index in range(5)]
    assert set(found.values()) == {"1"}
    assert "mg" in host.run(f"grep -A25 '^Size: *65536 kB' /proc/{process}/smaps | grep VmFlags").stdout
    status = agree(host, "elastic")
    assert [one["key"] for one in status["changed"]] == ["machine.type"]
    assert "  configured differently: machine.type pc-q35-7.2 → pc-q35-7.1 (restart)\n" in (
        host.run("kvmsup status elastic").stdout
    )
    assert ask(host, "elastic", "query-status")["running"]


@pytest.mark.usefixtures("elastic")
def test_a_restart_does_the_rest(host: Host) -> None:
    host.run("systemctl daemon-reload; systemctl restart kvm@elastic", timeout=240)
    assert "pc-q35-7.1" in host.run(f"tr '\\0' ' ' < /proc/{guests.pid(host, 'elastic')}/cmdline").stdout
    assert len(vcpus(host, "elastic")) == 5
    assert guests.kvmsup(host, "status elastic")["changed"] == []


@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("apply.")])
def test_a_kill_at_each_step(host: Host, elastic: int, step: str) -> None:
    """The guest goes on, its threads are where its claim says, and the next reload does all of it."""
    process = elastic
    count = len(vcpus(host, "elastic"))
    old = guests.claim(host, "elastic")["EMULATOR_CPUS"]
    new = "0" if old == "1" else "1"
    more = 2 if step in ("apply.add", "apply.pin-added") else 1  # killed between one and the next
    edit(
        host,
        "elastic",
        (f"vcpus = {count}\n", f"vcpus = {count + more}\n"),
        (f'emulator = "{old}"', f'emulator = "{new}"'),
    )
    host.put(f"KVMSUP_FAULT={step}:kill\n".encode(), "/run/fault.env")
    assert reload(host, "elastic", check=False).rc == 1
    host.put(b"", "/run/fault.env")
    assert guests.state(host, "kvm@elastic") == "active"
    # The supervisor looks a second later.
    host.wait_for("grep -q KVMSUP_PAUSED=no /run/kvmsup/claims/elastic.env", timeout=30)
    host.wait_for("kvmsup verify elastic", timeout=30)
    assert ask(host, "elastic", "query-status")["running"]
    reload(host, "elastic")
    assert guests.pid(host, "elastic") == process
    assert len(vcpus(host, "elastic")) == count + more
    assert guests.claim(host, "elastic")["EMULATOR_CPUS"] == new
    assert guests.kvmsup(host, "verify elastic")["ok"]
    assert guests.kvmsup(host, "status elastic")["changed"] == []


@pytest.mark.usefixtures("elastic")
def test_pins_schedulers_and_a_conflict(host: Host) -> None:
    guests.start(host, "pinned")
    edit(host, "pinned", ('0 = "2"', '0 = "3"'), ("[placement.vcpu]", 'scheduler = "fifo:10"\n[placement.vcpu]'))
    reload(host, "pinned")
    assert vcpus(host, "pinned") == {"CPU 0/KVM": "3"}
    assert policies(host, "pinned").startswith("SCHED_FIFO") and policies(host, "pinned").endswith("10")
    # The shared guest beside it is kept off the new CPU, and has the old one back.
    fence = host.read("/sys/fs/cgroup/kvm.slice/kvm-shared.slice/cpuset.cpus.effective").strip()
    assert fence == "0-2,4-7"
    agree(host, "pinned")

    other = PINNED.replace('0 = "2"', '0 = "6"')
    guests.configure(host, {"other": other})
    guests.start(host, "other")
    before = guests.claim(host, "pinned"), vcpus(host, "pinned")
    edit(host, "pinned", ('0 = "3"', '0 = "6"'), ("fifo:10", "rr:5"))
    assert reload(host, "pinned", check=False).rc == 1
    assert (
        "placement.vcpu: CPU 6 is dedicated to guest other\n  hint: choose other CPUs, or stop that guest"
    ) in guests.said(host, "pinned")
    assert (guests.claim(host, "pinned"), vcpus(host, "pinned")) == before
    assert guests.state(host, "kvm@pinned") == "active"

    # What the refused reload left undone is done once the CPU is free; memory stays on its node.
    guests.kill(host, "other")
    reload(host, "pinned")
    assert vcpus(host, "pinned") == {"CPU 0/KVM": "3"}
    assert "its memory would go from node 0 to node 1" in guests.said(host, "pinned")
    assert "rr:5" in host.run("kvmsup status pinned").stdout
    guests.kill(host, "pinned")
    guests.kill(host, "elastic")
    assert guests.leftovers(host) == []
    assert host.run("ls /run/kvmsup/running").stdout == ""


@pytest.mark.linux_guests
def test_a_vcpu_for_linux(fresh_host: Host) -> None:
    """It is pinned before its first instruction, and the guest's own kernel uses it."""
    guests.install_demo(fresh_host)
    text = fresh_host.read("/etc/kvmsup/demo.toml").replace("vcpus = 2", "vcpus = 2\nmaxcpus = 4")
    guests.configure(fresh_host, {"demo": text})
    guests.start(fresh_host, "demo")
    guests.booted(fresh_host, "demo")
    pins = guests.claim(fresh_host, "demo")["VCPU_CPUS"].split()
    assert pins == ["4", "5", "6", "7"]
    fresh_host.run(f"echo 1 > {TRACE}/events/kvm/kvm_entry/enable; echo > {TRACE}/trace")
    edit(fresh_host, "demo", ("vcpus = 2", "vcpus = 3"))
    reload(fresh_host, "demo")
    assert vcpus(fresh_host, "demo") == {"CPU 0/KVM": "4", "CPU 1/KVM": "5", "CPU 2/KVM": "6"}
    online = "echo 1 > /sys/devices/system/cpu/cpu2/online; echo cpus=$((0+$(nproc)))"
    assert guests.inside(fresh_host, "demo", online) == "cpus=3"
    seen = fresh_host.run(
        f"grep 'CPU 2/KVM.*kvm_entry' {TRACE}/trace | grep -o '\\[[0-9]*\\]' | sort -u"
    ).stdout.split()
    assert seen == ["[006]"]
    fresh_host.run(f"echo 0 > {TRACE}/events/kvm/kvm_entry/enable")
    agree(fresh_host, "demo")
    guests.stop(fresh_host, "demo")
    assert guests.leftovers(fresh_host) == []


def test_another_qemu(host: Host) -> None:
    """As an upgrade replaces it under a running guest; installed again, the same one is the same."""
    guests.configure(host, {"elastic": guests.SHARED})
    guests.start(host, "elastic")
    binary = "/usr/bin/qemu-system-x86_64"
    assert "QEMU" not in host.run("kvmsup list").stdout
    host.run(f"cp -p {binary} {binary}.new; mv {binary}.new {binary}")
    assert "QEMU" not in host.run("kvmsup list").stdout
    host.run(f"cp -p {binary} {binary}.new; touch {binary}.new; mv {binary}.new {binary}")
    version = host.run(f"{binary} --version | sed -n '1s/.*version \\([0-9.]*\\).*/\\1/p'").stdout.strip()
    assert f"older QEMU: restart to use {version}\n" in host.run("kvmsup list").stdout
    assert guests.kvmsup(host, "status elastic")["qemu"] == {"differs": "older", "installed": version}
    host.run("systemctl restart kvm@elastic", timeout=240)
    assert "QEMU" not in host.run("kvmsup list").stdout
    guests.kill(host, "elastic")


def test_check_of_a_file_that_is_not_loaded(host: Host) -> None:
    guests.configure(host, {"elastic": ELASTIC})
    assert host.run("kvmsup check elastic").stderr == ""
    edit(host, "elastic", ("vcpus = 2", "vcpus = 3"))
    assert host.run("kvmsup check elastic").stderr == (
        "/etc/kvmsup/elastic.toml: warning: systemd has not loaded this file as it is now: a start would be refused\n"
        "  hint: systemctl daemon-reload\n"
    )
    host.run("systemctl daemon-reload")
    assert host.run("kvmsup check elastic").stderr == ""
