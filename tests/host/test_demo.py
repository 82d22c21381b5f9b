# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo guest, from `systemctl start` to its own power-off: a real Linux under KVM."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

NAME = "demo"
NEEDED = 128  # 256M in pages of 2M


@pytest.fixture(scope="module")
def demo(host: Host) -> Host:
    """A host on which the demo guest has come up."""
    guests.keep_supervisor(host)
    guests.install_demo(host)
    assert guests.pages(host) == (0, 0)
    guests.start(host, NAME)
    guests.booted(host, NAME)
    return host


def test_the_guest_says_that_it_runs_under_kvm(demo: Host) -> None:
    said = guests.said(demo, NAME)
    assert "on 2 CPUs, hypervisor: KVM" in said
    assert "package 0 core 1" in said


def test_every_thread_is_where_the_claim_says(demo: Host) -> None:
    claim = guests.claim(demo, NAME)
    assert claim["VCPU_CPUS"] == "2 3"
    process = guests.pid(demo, NAME)
    threads = guests.allowed(demo, process)
    assert (threads.pop("CPU 0/KVM"), threads.pop("CPU 1/KVM")) == ("2", "3")
    assert set(threads.values()) == {claim["EMULATOR_CPUS"]} == {"0-1"}
    pit = f"grep -l '^kvm-pit/{process}$' /proc/[0-9]*/comm | xargs dirname"
    assert "Cpus_allowed_list:\t0-1\n" in demo.run(f"cat $({pit})/status").stdout


def test_its_memory_is_in_hugepages_of_its_node(demo: Host) -> None:
    assert guests.pages(demo) == (NEEDED, 0)
    maps = demo.run(f"grep kernelpagesize_kB=2048 /proc/{guests.pid(demo, NAME)}/numa_maps").stdout
    assert "bind:0" in maps
    assert f"N0={NEEDED} " in maps
    assert "N1=" not in maps


def test_qemu_is_unprivileged_and_alone(demo: Host) -> None:
    status = demo.read(f"/proc/{guests.pid(demo, NAME)}/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert 61184 <= int(fields["Uid"].split()[0]) <= 65519  # systemd's range for dynamic users
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")
    assert guests.show(demo, f"kvm@{NAME}", "User", "DynamicUser") == {"User": "kvm-demo", "DynamicUser": "yes"}
    exposure = demo.run(f"systemd-analyze security --no-pager kvm@{NAME} | tail -n 1").stdout
    assert float(exposure.split(":")[1].split()[0]) <= 0.5, exposure


def test_the_console_answers(demo: Host) -> None:
    assert guests.inside(demo, NAME, "echo 6x7=$((6*7))") == "6x7=42"


def test_status_and_list_tell_the_same(demo: Host) -> None:
    status = guests.kvmsup(demo, f"status {NAME}")
    assert (status["active"], status["drift"]) == ("active", False)
    assert status["memory"] == [
        {
            "node": 0,
            "page_size": 2 << 20,
            "claimed": NEEDED,
            "held": NEEDED,
            "added": NEEDED,
            "pool": NEEDED,
            "free": 0,
        }
    ]
    vcpus = {one["role"]: one["actual"] for one in status["threads"] if one["role"] != "emulator"}
    assert vcpus == {"vCPU 0": "2", "vCPU 1": "3"}
    listed = guests.kvmsup(demo, "list")
    assert listed["host"]["dedicated"] == "2-3"
    assert [(one["name"], one["active"], one["cpus"]) for one in listed["guests"]] == [(NAME, "active", "2-3")]


def test_drift_is_seen(demo: Host) -> None:
    """An administrator's taskset on one vCPU: status says which thread, and exits 1."""
    status = guests.kvmsup(demo, f"status {NAME}")
    tid = next(one["tid"] for one in status["threads"] if one["role"] == "vCPU 1")
    demo.run(f"taskset -p -c 5 {tid}")
    told = demo.run(f"kvmsup status {NAME}", check=False)
    assert told.rc == 1
    drifted = next(line for line in told.stdout.splitlines() if "drift" in line)
    assert drifted.split()[:2] + drifted.split()[-5:-3] == ["vCPU", "1", "3", "5"]
    demo.run(f"taskset -p -c 3 {tid}")
    assert demo.run(f"kvmsup status {NAME}").rc == 0


def test_stop_presses_the_power_button(demo: Host) -> None:
    guests.stop(demo, NAME)
    assert "demo: the power button was pressed, powering off" in guests.said(demo, NAME)
    assert guests.show(demo, f"kvm@{NAME}", "ActiveState", "Result") == {
        "ActiveState": "inactive",
        "Result": "success",
    }
    assert guests.pages(demo) == (0, 0)
    assert guests.leftovers(demo) == []


def test_its_own_poweroff_is_a_clean_end(demo: Host) -> None:
    guests.start(demo, NAME)
    demo.wait_for_line(f"--unit=kvm@{NAME}", guests.READY, times=2, timeout=150)
    guests.type_in(demo, NAME, "poweroff -f")
    demo.wait_for(f"[ $(systemctl show -P ActiveState kvm@{NAME}) = inactive ]", timeout=60)
    assert guests.show(demo, f"kvm@{NAME}", "Result") == {"Result": "success"}
    guests.released(demo, NAME)
    assert guests.pages(demo) == (0, 0)
    assert guests.leftovers(demo) == []
