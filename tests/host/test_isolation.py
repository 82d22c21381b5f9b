# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests whose CPUs are isolated while they run: read back from cgroupfs, /proc/irq and every thread's mask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmsup import cpulist
from tests.host import guests
from tests.host.faults import inject
from tests.lab.host import Host

ALONE = guests.ISOLATED.replace('hugepages = "2M"\n', "")
ONE = ALONE.replace("vcpus = 2", "vcpus = 1").replace("isolate = true", 'isolate = true\nsmt = "isolate"\nnodes = "1"')
OWN = frozenset((2, 3))
CGROUP = "/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@{}.service/qemu"
# Somebody who runs everywhere, a little.
RESTLESS = """
import threading, time
def wake():
    while True:
        time.sleep(0.2)
for _ in range(8):
    threading.Thread(target=wake).start()
"""
# Stands alone in the host: all masks of CPUs that the kernel goes by, and each thread's.
MASKS = Path(__file__).with_name("masks.py")


@pytest.fixture(scope="module")
def quiet(host: Host) -> Iterator[Host]:
    """A host with packet steering on one queue, and with somebody who runs everywhere."""
    host.run("ip link add v0 type veth peer name v1; echo e > /sys/class/net/v0/queues/rx-0/rps_cpus")
    host.put(RESTLESS.encode(), "/root/restless.py")
    host.run("systemd-run --quiet --unit restless python3 /root/restless.py")
    host.put(MASKS, "/root/masks.py")
    guests.configure(host, {"rt": ALONE, "other": ONE})
    guests.keep_supervisor(host)
    yield host
    host.run("systemctl stop restless")


@pytest.fixture(autouse=True)
def alone(quiet: Host) -> Iterator[None]:
    """No guest of a test, one that failed above all, is there in the next one."""
    yield
    if guests.leftovers(quiet):
        guests.clear(quiet)
        guests.configure(quiet, {"rt": ALONE, "other": ONE})
        quiet.run("echo 1 | tee /sys/devices/system/cpu/cpu[1-7]/online")


def masks(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.run(["python3", "/root/masks.py"], timeout=60).stdout)
    return found


def still_ours(host: Host) -> str:
    """What kvmsup has written down of the host's, or set: nothing while nobody is isolated."""
    places = "/run/kvmsup/*.found /run/kvmsup/isolated/*"
    kept = "find /run/systemd/system.control /run/systemd/transient -name 50-AllowedCPUs.conf"
    return host.run(f"ls -d {places} 2>/dev/null; {kept} 2>/dev/null", check=False).stdout


def calm(host: Host) -> None:
    """The supervisor looks at a guest a second after its start, and would mend what somebody has changed by then."""
    count = "grep ^voluntary /proc/$(systemctl show -P MainPID kvmsup)/status"
    host.run("sleep 2")
    host.wait_for(f'before=$({count}); sleep 3; [ "$before" = "$({count})" ]', timeout=90)


def partition(host: Host, name: str) -> tuple[str, str]:
    place = f"{CGROUP.format(name)}/vcpu"
    return host.read(f"{place}/cpuset.cpus.partition").strip(), host.read(f"{place}/cpuset.cpus.effective").strip()


def isolated(host: Host) -> str:
    """The CPUs in any isolated partition, as the kernel has them."""
    return host.read("/sys/fs/cgroup/cpuset.cpus.isolated").strip()


def start(host: Host, name: str = "rt") -> int:
    guests.start(host, name)
    assert partition(host, name)[0] == "isolated"
    return guests.pid(host, name)


def assert_off(found: dict[str, Any], cpus: frozenset[int], stuck: frozenset[str]) -> None:
    """Whatever can be moved is off `cpus`; of interrupts only those of `stuck` are not."""
    for key, listed in found["masks"].items():
        if key not in stuck:
            assert not cpulist.parse(listed) & cpus, key
    for one in found["threads"]:
        if not one["bound"]:
            assert not cpulist.parse(one["cpus"]) & cpus, one


def vcpus_aside(found: dict[str, Any], process: int) -> dict[str, Any]:
    return found | {
        "threads": [one for one in found["threads"] if not (one["pid"] == process and "/KVM" in one["name"])]
    }


def stuck_of(host: Host, name: str) -> frozenset[str]:
    told = guests.kvmsup(host, f"status {name}")["isolation"]["stuck"]
    return frozenset(f"irq {one['irq']}" for one in told) | {"irq 0", "irq 2"}


def comparable(found: dict[str, Any]) -> dict[Any, str]:
    """What must be the same before and after: masks, and those of the threads that were there all along.

    A worker is called after its work, and a rescuer (kworker/R) goes where its workqueue may when it is next wanted.
    """
    there = [one for one in found["threads"] if not one["name"].startswith("kworker/R")]
    threads = {(one["tid"], one["name"].partition("-")[0]): one["cpus"] for one in there}
    return {**found["masks"], **threads}


def assert_as_before(before: dict[str, Any], after: dict[str, Any]) -> None:
    then, now = comparable(before), comparable(after)
    assert {key: value for key, value in now.items() if key in then} == {
        key: value for key, value in then.items() if key in now
    }


def test_the_host_leaves_its_cpus_and_comes_back(quiet: Host) -> None:
    before = masks(quiet)
    process = start(quiet)
    assert guests.claim(quiet, "rt")["VCPU_CPUS"] == "2 3"
    assert partition(quiet, "rt") == ("isolated", "2-3")
    assert isolated(quiet) == "2-3"
    during = masks(quiet)
    assert {cpus for name, cpus in guests.allowed(quiet, process).items() if "/KVM" not in name} == {"0-1"}
    threads = guests.allowed(quiet, process)
    assert (threads["CPU 0/KVM"], threads["CPU 1/KVM"]) == ("2", "3")
    assert_off(vcpus_aside(during, process), OWN, stuck_of(quiet, "rt"))
    assert during["masks"]["default"] == "0-1,4-7"
    assert during["masks"]["workqueues"] == "0-1,4-7"
    assert during["masks"]["rps v0 rx-0"] == "1"
    assert guests.kvmsup(quiet, "verify")["ok"]
    said = guests.said(quiet, "rt")
    assert "off CPU 2-3: new interrupts, the lockup detector, " in said
    assert "packets of v0 rx-0" in said and "not to be moved: virtio0-req." in said
    guests.kill(quiet, "rt")
    assert_as_before(before, masks(quiet))
    assert isolated(quiet) == ""
    assert (still_ours(quiet), guests.leftovers(quiet)) == ("", [])


DOINGS = (
    "systemctl daemon-reload",
    "systemctl daemon-reexec",
    "systemctl reload kvm@rt",
    "systemctl set-property --runtime kvm@rt CPUWeight=200; systemctl revert kvm@rt",
    "systemctl set-property --runtime kvm.slice MemoryHigh=4G; systemctl revert kvm.slice",
    "systemctl freeze kvm@rt && systemctl thaw kvm@rt",
    "systemctl start kvm@other && systemctl kill -s KILL --kill-whom=main kvm@other",
    "systemctl restart kvmsup",
    "systemctl reload kvmsup",
)


def test_systemd_leaves_it_alone(quiet: Host) -> None:
    start(quiet)
    for doing in DOINGS:
        quiet.run(doing, timeout=240)
        if "other" in doing:
            quiet.wait_for("systemctl is-failed -q kvm@other")
            guests.released(quiet, "other")
            quiet.run("systemctl reset-failed 'kvm*'")
        assert partition(quiet, "rt") == ("isolated", "2-3"), doing
        assert isolated(quiet) == "2-3", doing
    assert guests.kvmsup(quiet, "verify")["ok"]
    guests.kill(quiet, "rt")


def test_its_file_may_change_and_go(quiet: Host) -> None:
    """Invariant 6: the unit stays delegated while it is divided, so that it can be reloaded, and be stopped."""
    process = start(quiet)
    guests.configure(quiet, {"rt": ALONE.replace("isolate = true\n", "")})
    quiet.run("systemctl reload kvm@rt", timeout=120)
    assert "placement.isolate true → false, needs a restart" in guests.said(quiet, "rt")
    quiet.run("mkdir -p /etc/systemd/system/kvm@.service.d")
    quiet.put(b"[Service]\nTimeoutStopSec=12\n", "/etc/systemd/system/kvm@.service.d/impatient.conf")
    quiet.run("rm /etc/kvmsup/rt.toml; systemctl daemon-reload")
    assert (partition(quiet, "rt"), guests.pid(quiet, "rt")) == (("isolated", "2-3"), process)
    assert guests.kvmsup(quiet, "verify")["ok"]
    quiet.run("systemctl stop kvm@rt", timeout=120)
    guests.released(quiet, "rt")
    said = guests.said(quiet, "rt")
    assert "cutting its power" in said  # it does not hear; what counts is that it was asked
    assert "Failed to spawn" not in said
    assert (isolated(quiet), still_ours(quiet)) == ("", "")
    quiet.run("rm -r /etc/systemd/system/kvm@.service.d")
    guests.configure(quiet, {"rt": ALONE})
    assert quiet.run("systemctl cat kvm@rt").stdout.count("Delegate=cpuset") == 1


def test_two_at_once_and_one_goes(quiet: Host) -> None:
    """The other one's idle sibling is isolated, too, and nothing of the first one's is touched."""
    start(quiet)
    start(quiet, "other")
    assert isolated(quiet) == "2-5"
    process = guests.pid(quiet, "other")
    assert guests.allowed(quiet, process)["CPU 0/KVM"] == "4"
    guests.kill(quiet, "rt")
    assert isolated(quiet) == "4-5"
    found = masks(quiet)
    assert found["masks"]["default"] == "0-3,6-7"
    assert_off(vcpus_aside(found, process), frozenset((4, 5)), stuck_of(quiet, "other"))
    assert quiet.read("/sys/fs/cgroup/kvm.slice/cpuset.cpus.exclusive").strip() == "4-5"
    guests.kill(quiet, "other")
    assert still_ours(quiet) == ""


def test_who_else_wants_to_run_there_is_turned_away(quiet: Host) -> None:
    """By the kernel: not even root's taskset gets there."""
    start(quiet)
    assert quiet.run("taskset -c 2 true", check=False).rc != 0
    quiet.run("systemd-run --quiet --wait --slice=system.slice -p CPUAffinity=0-7 sh -c 'taskset -pc $$$$ > /tmp/aff'")
    assert quiet.read("/tmp/aff").strip().endswith(": 0,1,4-7")
    guests.kill(quiet, "rt")


def test_the_host_keeps_its_housekeeping_cpus(quiet: Host) -> None:
    """Whoever names them for an isolated guest; that some are online is asked of the host's file itself."""
    guests.configure(quiet, {"rt": ALONE.replace("[memory]", '[placement.vcpu]\n0 = "0"\n1 = "1"\n[memory]')})
    assert guests.start(quiet, "rt", check=False).rc == 1
    assert "placement.vcpu: CPU 0-1 is for housekeeping, which no guest may own" in guests.said(quiet, "rt")
    guests.released(quiet, "rt")
    quiet.run("systemctl reset-failed 'kvm*'", check=False)
    guests.configure(quiet, {"rt": ALONE})
    assert still_ours(quiet) == ""


def test_what_somebody_moves_meanwhile_is_told_and_stays(quiet: Host) -> None:
    before = masks(quiet)
    start(quiet)
    calm(quiet)
    quiet.run("echo 2-4 > /proc/irq/9/smp_affinity_list")
    told = guests.kvmsup(quiet, "verify", check=False)["differences"]
    assert [(one["what"], one["wanted"], one["actual"]) for one in told] == [
        ("acpi (9)", "not on CPU 2-3", "may come there")
    ]
    guests.kill(quiet, "rt")
    after = masks(quiet)
    assert after["masks"]["irq 9"] == "2-4"
    quiet.run(f"echo {before['masks']['irq 9']} > /proc/irq/9/smp_affinity_list")
    assert_as_before(before, masks(quiet))


def test_an_interrupt_that_is_born_meanwhile_keeps_off_and_is_let_in_afterwards(quiet: Host) -> None:
    device, driver = "0000:00:1f.2", "/sys/bus/pci/drivers/ahci"
    quiet.run(f"echo {device} > {driver}/unbind")
    start(quiet)
    quiet.run(f"echo {device} > {driver}/bind")
    number = quiet.run("awk -F: '/ahci/ {print $1 + 0}' /proc/interrupts").stdout.strip()
    assert masks(quiet)["masks"][f"irq {number}"] == "0-1,4-7"
    guests.kill(quiet, "rt")
    assert masks(quiet)["masks"][f"irq {number}"] == "0-7"


def test_a_cpu_goes_and_comes_back(quiet: Host) -> None:
    """The partition has it again, and its vCPU with it, which is with the other threads of QEMU meanwhile."""
    process = start(quiet)
    vcpu = f"/proc/{process}/task/$(grep -l 'CPU 1/KVM' /proc/{process}/task/*/comm | cut -d/ -f5)/status"
    quiet.run("echo 0 > /sys/devices/system/cpu/cpu3/online")
    # With QEMU's other threads, not on another vCPU's CPU.
    quiet.wait_for(f"grep -q 'Cpus_allowed_list:.0-1$' {vcpu}", timeout=60)
    assert partition(quiet, "rt") == ("isolated", "2")
    quiet.run("echo 1 > /sys/devices/system/cpu/cpu3/online")
    quiet.wait_for(f"grep -q 'Cpus_allowed_list:.3$' {vcpu}", timeout=60)
    quiet.wait_for("kvmsup verify", timeout=60)
    assert partition(quiet, "rt") == ("isolated", "2-3")
    guests.kill(quiet, "rt")


def test_a_partition_that_somebody_undoes_is_told_and_a_reload_makes_it_again(quiet: Host) -> None:
    start(quiet)
    quiet.run(f"echo member > {CGROUP.format('rt')}/vcpu/cpuset.cpus.partition; systemctl reload kvmsup")
    quiet.wait_for("journalctl -b -o cat KVMSUP_GUEST=rt | grep -q 'CPU 2-3 is not isolated any more'", timeout=60)
    assert "systemctl reload kvm@rt isolates it again" in guests.said(quiet, "rt")
    assert quiet.run("kvmsup verify rt", check=False).rc == 1
    quiet.run("systemctl reload kvm@rt", timeout=120)
    assert partition(quiet, "rt") == ("isolated", "2-3")
    assert guests.kvmsup(quiet, "verify rt")["ok"]
    guests.kill(quiet, "rt")


def test_a_reload_moves_the_partition_with_the_pins(quiet: Host) -> None:
    text = ALONE.replace("[memory]", '[placement.vcpu]\n0 = "{}"\n1 = "{}"\n[memory]')
    guests.configure(quiet, {"rt": text.format(4, 5)})
    process = start(quiet)
    assert partition(quiet, "rt") == ("isolated", "4-5")
    guests.configure(quiet, {"rt": text.format(7, 6)})
    quiet.run("systemctl reload kvm@rt", timeout=120)
    threads = guests.allowed(quiet, process)
    assert (threads["CPU 0/KVM"], threads["CPU 1/KVM"]) == ("7", "6")
    assert (partition(quiet, "rt"), isolated(quiet)) == (("isolated", "6-7"), "6-7")
    found = masks(quiet)
    assert found["masks"]["default"] == "0-5"
    assert_off(vcpus_aside(found, process), frozenset((6, 7)), stuck_of(quiet, "rt"))
    assert guests.kvmsup(quiet, "verify")["ok"]
    guests.kill(quiet, "rt")
    guests.configure(quiet, {"rt": ALONE})


def test_what_ran_there_and_how_quiet_it_is_are_told(quiet: Host) -> None:
    start(quiet)
    found = guests.kvmsup(quiet, "status rt --noise 2")["isolation"]
    assert (found["cpus"], found["partition"], found["amiss"]) == ("2-3", True, "")
    assert {one["cpu"] for one in found["ran"]} <= OWN
    assert {"interrupt", "softirq"} <= {one["kind"] for one in found["ran"]}
    assert not any("python" in one["name"] for one in found["ran"])
    assert [one["cpu"] for one in found["noise"]] == [2, 3]
    assert all(one["seconds"] == 2 and one["gaps"] and one["longest"] <= one["lost"] < 2e9 for one in found["noise"])
    shown = quiet.run("kvmsup status rt").stdout
    assert "  isolation  CPU 2-3: nothing else is scheduled there, and no load balanced\n" in shown
    assert "Local timer interrupts (LOC)" in shown
    # The loop has left the guest's unit as it was.
    assert quiet.read(f"{CGROUP.format('rt')}/cgroup.procs").split() == [str(guests.pid(quiet, "rt"))]
    told = quiet.run("kvmsup status other --noise 1", check=False)
    assert told.stderr == "kvmsup: guest other does not run: nothing is isolated for it\n"
    area = [one for one in guests.kvmsup(quiet, "host", check=False)["findings"] if one["what"] == "isolated guests"]
    assert [one["verdict"] for one in area] == ["ok"]
    assert area[0]["told"].startswith("CPU 2-3 of rt: ")
    assert "; on CPU 2 " in area[0]["told"] and "; on CPU 3 " in area[0]["told"]
    assert "isolcpus=2-3 nohz_full=2-3 on the kernel's command line" in area[0]["told"]
    guests.kill(quiet, "rt")


# Every step of an isolated guest is in the tests of faults, too; here are those that it brings.
FAULTS = (
    ("setup.interrupts", "kill"),
    ("attach.isolate", "error"),
    ("attach.pin", "kill"),
    ("release.interrupts", "kill"),
)


@pytest.mark.parametrize(("step", "how"), FAULTS)
def test_whatever_fails_the_host_is_as_before(quiet: Host, step: str, how: str) -> None:
    before = masks(quiet)
    for unit in ("kvm@rt", "kvm-setup@rt"):
        quiet.run(f"mkdir -p /run/systemd/system/{unit}.service.d")
        quiet.put(
            b"[Service]\nEnvironmentFile=-/run/fault.env\nTimeoutStopSec=8\n",
            f"/run/systemd/system/{unit}.service.d/fault.conf",
        )
    quiet.run("systemctl daemon-reload")
    inject(quiet, f"{step}:{how}")
    started = guests.start(quiet, "rt", check=False)
    assert (started.rc == 0) == step.startswith("release.")
    quiet.run("systemctl kill -s KILL kvm@rt; systemctl stop kvm@rt", check=False)
    quiet.wait_for("systemctl show -P ActiveState kvm-setup@rt | grep -qE '^(inactive|failed)$'", timeout=60)
    inject(quiet, "")
    # The next setup, of whomever, makes good what a release was killed over.
    guests.start(quiet, "other")
    guests.kill(quiet, "other")
    assert_as_before(before, masks(quiet))
    assert (isolated(quiet), still_ours(quiet), guests.leftovers(quiet)) == ("", "", [])


def test_everything_is_killed_at_once(quiet: Host) -> None:
    before = masks(quiet)
    process = start(quiet)
    inject(quiet, "release.interrupts:kill")
    supervisor = guests.show(quiet, "kvmsup", "MainPID")["MainPID"]
    quiet.run(f"kill -9 {process} {supervisor}")
    quiet.wait_for("systemctl show -P ActiveState kvm-setup@rt | grep -qE '^(inactive|failed)$'", timeout=60)
    assert isolated(quiet) == ""  # by the kernel alone
    inject(quiet, "")
    quiet.run("systemctl start keep-supervisor kvmsup")
    quiet.wait_for("! ls /run/kvmsup/claims | grep .", timeout=60)
    after = masks(quiet)
    assert after["masks"].pop("rps v0 rx-0") == "1"  # the supervisor has a network of its own
    assert_as_before(before, after)
    guests.start(quiet, "other")
    guests.kill(quiet, "other")
    assert_as_before(before, masks(quiet))
    assert still_ours(quiet) == ""


CONTROL = "/run/systemd/system.control"


def allowed_cpus(host: Host) -> list[str]:
    units = ("user.slice", "system.slice", "init.scope")
    return [guests.show(host, unit, "AllowedCPUs")["AllowedCPUs"] for unit in units]


def test_where_the_kernel_has_no_partition_in_a_unit_the_host_is_fenced_off(quiet: Host) -> None:
    """As on Linux 6.2 to 6.6: the code of this host is told that 6.7 is far away, and systemd does the work.

    What the administrator had is there again afterwards, until the next boot or for good, and so is what he changes.
    """
    kernel = "/usr/lib/kvmsup/kvmsup/effects/kernel.py"
    quiet.run(f"cp {kernel} /root/kernel.py; sed -i 's/(6, 7)/(66, 7)/' {kernel}; systemctl restart kvmsup")
    quiet.run("systemctl set-property --runtime user.slice AllowedCPUs=0-5")
    quiet.run("systemctl set-property system.slice AllowedCPUs=1-7")
    before = masks(quiet)
    guests.start(quiet, "rt")
    process = guests.pid(quiet, "rt")
    assert allowed_cpus(quiet) == ["0-1 4-5", "1 4-7", "0-1 4-7"]
    assert_off(vcpus_aside(masks(quiet), process), OWN, stuck_of(quiet, "rt"))
    assert isolated(quiet) == ""
    assert "isolation  CPU 2-3: all services keep off" in quiet.run("kvmsup status rt").stdout
    assert guests.kvmsup(quiet, "verify")["ok"]
    guests.kill(quiet, "rt")
    assert allowed_cpus(quiet) == ["0-5", "1-7", "0-7"]
    assert still_ours(quiet) == f"{CONTROL}/user.slice.d/50-AllowedCPUs.conf\n"
    guests.start(quiet, "rt")
    calm(quiet)
    quiet.run("systemctl set-property --runtime init.scope AllowedCPUs=0-6")
    guests.kill(quiet, "rt")
    assert allowed_cpus(quiet) == ["0-5", "1-7", "0-6"]
    for unit in ("init.scope", "user.slice", "system.slice"):
        quiet.run(f"systemctl set-property --runtime {unit} AllowedCPUs=0-7; systemctl revert {unit}")
    quiet.run("rm -f /run/systemd/transient/init.scope.d/50-AllowedCPUs.conf; systemctl daemon-reload")
    quiet.run(f"cp /root/kernel.py {kernel}; systemctl restart kvmsup")
    after = {one["tid"]: one["cpus"] for one in masks(quiet)["threads"]}
    there = [one for one in before["threads"] if one["kernel"] and not one["name"].startswith("kworker/R")]
    kept = {one["tid"]: one["cpus"] for one in there if one["tid"] in after}
    assert {tid: after[tid] for tid in kept} == kept
