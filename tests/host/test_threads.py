# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every thread of a guest is where it was given a place, and stays there: read from /proc of a real host."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab import still
from tests.lab.host import Host

# Two guest nodes of one core each, real-time vCPUs, and an iothread of each kind.
BUSY = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[cpu]
vcpus = 4
threads = 2
features = ["+topoext"]
[placement]
cpus = "dedicated"
scheduler = "fifo:5"
[memory]
size = "128M"
hugepages = "2M"
[numa.0]
vcpus = "0-1"
[numa.1]
vcpus = "2-3"
[iothread.io0]
[iothread.io1]
cpus = "1"
"""
VCPUS = {"CPU 0/KVM": "2", "CPU 1/KVM": "3", "CPU 2/KVM": "4", "CPU 3/KVM": "5"}


def add_vhost(host: Host, name: str) -> None:
    """Give the guest a vhost worker, as a network card will have one, by the administrator's own drop-in."""
    script = f"""
        mkdir -p /run/systemd/system/kvm@{name}.service.d
        {{ echo '[Service]'; echo 'DeviceAllow=/dev/vhost-vsock rw'; echo 'BindPaths=/dev/vhost-vsock'
        echo 'ExecStart='
        sed -n '/^ExecStart=.*qemu/,$p' /run/systemd/generator/kvm@{name}.service.d/50-kvmsup.conf | sed '$s/$/ \\\\/'
        echo '    -device vhost-vsock-pci,guest-cid=77'; }} >/run/systemd/system/kvm@{name}.service.d/90-vhost.conf
        systemctl daemon-reload
    """
    host.run(script)


def tid(host: Host, name: str, thread: str) -> int:
    process = guests.pid(host, name)
    return int(host.run(f"grep -lx '{thread}' /proc/{process}/task/*/comm | cut -d/ -f5").stdout)


def mask(host: Host, thread: int) -> str:
    return host.run(f"sed -n 's/^Cpus_allowed_list:.//p' /proc/{thread}/status").stdout.strip()


def policy(host: Host, thread: int) -> str:
    """Policy and priority as chrt(1) tells them: "SCHED_FIFO 5"."""
    lines = host.run(f"chrt -p {thread}").stdout.splitlines()
    return " ".join(line.rpartition(": ")[2].partition("|")[0] for line in lines[:2])


def wait_for_mask(host: Host, thread: int, wanted: str) -> None:
    host.wait_for(f"grep -qx 'Cpus_allowed_list:.{wanted}' /proc/{thread}/status", timeout=60)


@pytest.fixture(scope="module")
def busy(host: Host) -> Host:
    """A host on which guest busy runs."""
    guests.configure(host, {"busy": BUSY})
    add_vhost(host, "busy")
    planned = guests.kvmsup(host, "plan busy")[0]
    guests.start(host, "busy")
    claim = guests.claim(host, "busy")
    assert planned["verdict"] == "fits"
    assert list(planned["placement"]["vcpu"].values()) == claim["VCPU_CPUS"].split()
    assert planned["placement"]["emulator"] == claim["EMULATOR_CPUS"]
    return host


def test_every_thread_has_its_place(busy: Host) -> None:
    process = guests.pid(busy, "busy")
    found = guests.allowed(busy, process)
    assert {name: found.pop(name) for name in VCPUS} == VCPUS
    assert found.pop("IO io1") == "1"
    assert {"IO io0", f"vhost-{process}", "qemu-system-x86"} <= set(found)
    assert set(found.values()) == {"0-1"}
    pit = int(busy.run(f"pgrep -x kvm-pit/{process}").stdout)
    assert mask(busy, pit) == "0-1"
    assert policy(busy, tid(busy, "busy", "CPU 3/KVM")) == "SCHED_FIFO 5"
    assert policy(busy, tid(busy, "busy", "IO io1")) == "SCHED_OTHER 0"
    # What a real-time vCPU gave birth to is not real-time itself.
    busy.wait_for(f"grep -q kvm-nx-lpage /proc/{process}/task/*/comm", timeout=30)
    assert policy(busy, tid(busy, "busy", "kvm-nx-lpage-re")) == "SCHED_OTHER 0"


def test_each_guest_node_is_on_its_host_node(busy: Host) -> None:
    assert guests.claim(busy, "busy")["CELLS"] == "0 1"
    assert guests.pages(busy) == (32, 32)
    maps = busy.read(f"/proc/{guests.pid(busy, 'busy')}/numa_maps")
    backed = [line.split() for line in maps.splitlines() if "kernelpagesize_kB=2048" in line]
    found = {(words[1], next(word for word in words if word[0] == "N")) for words in backed}
    assert found == {("bind:0", "N0=32"), ("bind:1", "N1=32")}
    assert guests.kvmsup(busy, "verify")["ok"] is True


def test_a_cpu_goes_and_comes_back(busy: Host) -> None:
    thread = tid(busy, "busy", "CPU 1/KVM")
    busy.run("echo 0 > /sys/devices/system/cpu/cpu3/online")
    # Not on another guest's CPUs, and not real-time beside QEMU's own threads.
    wait_for_mask(busy, thread, "0-1")
    busy.wait_for(f"chrt -p {thread} | grep -q SCHED_OTHER", timeout=10)
    assert "after cpu3 offline: vCPU 1 runs on CPU 0-1 for now: CPU 3 is offline" in guests.said(busy, "busy")
    told = busy.run("kvmsup verify --json", check=False)
    assert told.rc == 1
    assert '"wanted": "CPU 3",\n      "actual": "CPU 0-1"' in told.stdout
    busy.run("echo 1 > /sys/devices/system/cpu/cpu3/online")
    wait_for_mask(busy, thread, "3")
    busy.wait_for(f"chrt -p {thread} | grep -q SCHED_FIFO", timeout=10)
    assert guests.kvmsup(busy, "verify busy")["ok"] is True


# The kernel takes all CPUs but one offline, brings them back after five seconds, and wakes the host up.
SUSPEND = """
    echo processors > /sys/power/pm_test; systemctl suspend
    until dmesg | grep -q 'PM: suspend exit'; do sleep 0.5; done; echo none > /sys/power/pm_test
"""


@pytest.mark.parametrize(
    "occasion",
    ["systemctl reload kvmsup", "systemctl daemon-reload", SUSPEND, "pkill -KILL kvmsup-superv"],
    ids=["reload", "daemon-reload", "suspend", "kill"],
)
def test_what_was_moved_by_hand_is_put_back(busy: Host, occasion: str) -> None:
    thread = tid(busy, "busy", "CPU 2/KVM")
    busy.run(f"taskset -pc 0-7 {thread}; chrt -o -p 0 {thread}")
    told = busy.run("kvmsup verify busy", check=False)
    assert told.rc == 1
    assert "vCPU 2, thread " in told.stdout
    assert "CPU 4   CPU 0-7" in told.stdout
    assert guests.kvmsup(busy, "status busy", check=False)["drift"] is True
    busy.run(occasion)
    wait_for_mask(busy, thread, "4")
    busy.wait_for(f"chrt -p {thread} | grep -q SCHED_FIFO", timeout=10)
    busy.wait_for("kvmsup verify busy", timeout=30)
    assert "its threads could not be looked at" not in guests.said(busy, "busy")


def test_who_ran_on_the_guests_cpus_is_named(busy: Host) -> None:
    busy.run("systemd-run --unit=stray taskset -c 5 sh -c 'taskset -pc 0-7 $$; exec sleep 600'")
    busy.wait_for("pgrep -x sleep", timeout=30)
    stray = next(one for one in guests.kvmsup(busy, "status busy")["foreign"] if one["name"] == "sleep")
    last = busy.run(f"sed 's/.*) //' /proc/{stray['tid']}/stat | cut -d' ' -f37").stdout.strip()
    assert (stray["cpu"], stray["group"]) == (int(last), "/system.slice/stray.service")
    assert f"{stray['tid']}  sleep" in busy.run("kvmsup status busy", check=False).stdout
    busy.run("systemctl stop stray")


def test_a_supervisor_that_hangs_with_the_claims_lock_is_ended(busy: Host) -> None:
    """By systemd; whoever has waited for the lock goes on, and so does the next supervisor."""
    guests.configure(busy, {"waits": guests.SHARED})
    busy.run("mkdir -p /run/systemd/system/kvmsup.service.d")
    busy.put(b"[Service]\nEnvironmentFile=-/run/hang.env\n", "/run/systemd/system/kvmsup.service.d/hang.conf")
    busy.put(b"KVMSUP_FAULT=supervisor.lock:stop\n", "/run/hang.env")
    busy.run("systemctl daemon-reload; systemctl restart --no-block kvmsup")
    busy.wait_for("ps -o stat= -C kvmsup-supervis | grep -q T", timeout=60)
    busy.run("rm /run/hang.env")
    guests.start(busy, "waits")
    assert "waiting for the claims' lock, which process " in guests.said(busy, "waits")
    assert "Watchdog timeout" in busy.run("journalctl -b -u kvmsup -o cat").stdout
    busy.wait_for("[ $(systemctl show -P ActiveState kvmsup) = active ]", timeout=60)
    busy.run("rm -r /run/systemd/system/kvmsup.service.d; systemctl daemon-reload")
    guests.kill(busy, "waits")
    busy.wait_for("kvmsup verify busy", timeout=30)


def test_an_iothread_keeps_off_and_keeps_others_off(busy: Host) -> None:
    """Last of those with guest busy: it ends here."""
    taken = guests.SHARED + '[iothread.x]\ncpus = "4"\n'
    guests.configure(busy, {"late": taken})
    assert guests.start(busy, "late", check=False).rc == 1
    assert "iothread.x.cpus: CPU 4 is dedicated to guest busy" in guests.said(busy, "late")
    guests.kill(busy, "busy")
    assert guests.pages(busy) == (0, 0)
    guests.configure(busy, {"late": taken, "next": guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "1"')})
    guests.start(busy, "late")
    assert guests.allowed(busy, guests.pid(busy, "late"))["IO x"] == "4"
    guests.start(busy, "next")
    assert guests.claim(busy, "next")["VCPU_CPUS"] == "6 7"
    guests.kill(busy, "next")
    guests.kill(busy, "late")
    assert guests.leftovers(busy) == []


def test_core_scheduling_is_refused_where_the_kernel_has_none(host: Host) -> None:
    if "CONFIG_SCHED_CORE=y" in host.run("cat /boot/config-$(uname -r)").stdout:
        pytest.skip("this kernel has it")
    guests.configure(host, {"lonely": guests.SHARED + "[placement]\ncore-scheduling = true\n"})
    assert guests.start(host, "lonely", check=False).rc == 1
    said = guests.said(host, "lonely")
    assert "placement.core-scheduling: this kernel has no core scheduling (CONFIG_SCHED_CORE)" in said
    assert guests.leftovers(host) == []
