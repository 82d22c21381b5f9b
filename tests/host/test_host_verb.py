# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup host says what is true, changes nothing, and its fixes fix.

The lab is an AMD under TCG: what is Intel's is tested in tests/unit/test_soundness.py only.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host import guests
from tests.lab.host import Host

KSM = "/sys/kernel/mm/ksm/run"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
NX = "/sys/module/kvm/parameters/nx_huge_pages"
# Events of one device are handled in their order: when this one is through, so is the one that made the device.
SETTLED = "udevadm trigger --settle /sys/class/misc/kvm && udevadm settle"
ANEW = f"modprobe -r kvm_amd && modprobe kvm_amd && {SETTLED}"
BAD_RULE = 'KERNEL=="kvm", GROUP="root", MODE="0600"'


def asked(host: Host) -> dict[str, dict[str, str]]:
    """The findings by what they are about; the exit status and "ok" go with them.

    To see whether KVM works a machine is made, which is an event of /dev/kvm: udev is through with it afterwards.
    """
    done = host.run("kvmsup host --json; echo $?; udevadm settle")
    text, status = done.stdout.rstrip().rsplit("\n", 1)
    report: dict[str, Any] = json.loads(text)
    failed = any(one["verdict"] == "fail" for one in report["findings"])
    assert (report["ok"], int(status)) == (not failed, int(failed))
    found: dict[str, dict[str, str]] = {one["what"]: one for one in report["findings"]}
    assert all(one["fix"] for one in found.values() if one["verdict"] in ("warn", "fail"))
    return found


def verdicts(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {what: one["verdict"] for what, one in found.items() if one["verdict"] != "ok"}


def shell(host: Host, script: str) -> str:
    return host.run(script).stdout.strip()


@pytest.fixture(scope="module")
def sound(host: Host) -> dict[str, str]:
    """What is not ok on the lab as it is: it runs in a hypervisor, without mitigations and without a TSC."""
    found = verdicts(asked(host))
    assert set(found) <= {"hypervisor", "vulnerabilities", "clock"}
    assert set(found.values()) == {"warn"}
    return found


STATE = f"""
    lsmod | sort; grep -r . /sys/module/kvm*/parameters; stat -c '%a %u %g %t %T' /dev/kvm
    cat {KSM} {THP}; grep . /sys/devices/system/node/node*/hugepages/*/nr_hugepages; sysctl kernel.numa_balancing
    systemctl list-units --no-legend --plain --state=active 'kvm*'; ls -R /run/kvmsup /etc/modprobe.d /etc/udev
"""


def test_it_says_what_the_shell_reads(host: Host, sound: dict[str, str]) -> None:
    assert sound
    before = shell(host, STATE)
    found = {what: one["told"] for what, one in asked(host).items()}
    assert shell(host, STATE) == before
    parameters = "/sys/module/kvm_amd/parameters"
    model = shell(host, "sed -n 's/^model name.: //p' /proc/cpuinfo | head -n 1")
    assert found["CPU"] == f"SVM, {model}"
    assert (found["NPT"] == "in use") is (shell(host, f"cat {parameters}/npt") == "Y")
    assert found["nested"].startswith("on:" if shell(host, f"cat {parameters}/nested") == "1" else "off:")
    assert ("off" in found["nx_huge_pages"]) is (shell(host, f"cat {NX}") == "N")
    nanoseconds = int(shell(host, "cat /sys/module/kvm/parameters/halt_poll_ns"))
    assert found["halt polling"].startswith(f"up to {nanoseconds // 1000} µs ")
    mode, group = shell(host, "stat -c '%a %G' /dev/kvm").split()
    assert found["/dev/kvm"] == f"mode 0{mode}, group {group}: guests may open it"
    ioctl = "import fcntl; print(fcntl.ioctl(open('/dev/kvm'), 0xAE00))"
    version = shell(host, f"python3 -c {shlex.quote(ioctl)}")
    assert f"API {version}," in found["KVM"]
    counts = shell(host, "lscpu -p=SOCKET,NODE,CORE,CPU | grep -v '^#'").splitlines()
    columns = zip(*(line.split(",") for line in counts), strict=True)
    packages, nodes, cores, cpus = (len(set(column)) for column in columns)
    assert found["topology"] == f"{packages} packages, {nodes} nodes, {cores} cores, {cpus} CPUs"
    assert found["SMT"].startswith(f"{shell(host, 'cat /sys/devices/system/cpu/smt/control')}, {cpus // cores} ")
    pools = re.findall(r"node (\d): (\d+|none)", found["1G pages"])
    script = "cat /sys/devices/system/node/node{}/hugepages/hugepages-1048576kB/nr_hugepages"
    assert pools == [(node, shell(host, script.format(node)).replace("0", "none")) for node in ("0", "1")]
    assert f"[{found['THP'].partition(':')[0]}]" in shell(host, f"cat {THP}")
    assert found["kernel"] == shell(host, "uname -r")
    assert shell(host, "systemctl show -P Version").partition(".")[0].split()[0] == found["systemd"]
    assert f"1:{found['QEMU']}" in shell(host, "dpkg-query -W -f '${Version}' qemu-system-x86")
    assert found["clock"].startswith(shell(host, "cat /sys/devices/system/clocksource/*/current_clocksource"))


def test_anybody_may_ask(host: Host, sound: dict[str, str]) -> None:
    """Only whether KVM works is for root to try; all else is told as root is told it."""
    report = host.run("cd /; runuser -u nobody -- kvmsup host --json").stdout
    mine = {one["what"]: one for one in json.loads(report)["findings"]}
    roots = asked(host)
    assert verdicts(mine) == {**sound, "KVM": "unknown"}
    assert {what for what in roots if mine[what] != roots[what]} == {"KVM", "firmware"}
    assert mine["firmware"]["verdict"] == "ok"


BROKEN = [
    pytest.param(f"modprobe -r kvm_amd && modprobe kvm_amd npt=0 && {SETTLED}", {"NPT": "fail"}, id="npt"),
    pytest.param(
        "modprobe -r kvm_amd",
        {"firmware": "unknown", "module": "warn", "NPT": "unknown", "/dev/kvm": "warn"},
        id="module",
    ),
    pytest.param("rm /dev/kvm", {"firmware": "unknown", "/dev/kvm": "fail"}, id="no-device"),
    pytest.param("rm /dev/kvm; touch /dev/kvm", {"firmware": "unknown", "/dev/kvm": "fail"}, id="file"),
    pytest.param("chmod 0600 /dev/kvm", {"/dev/kvm": "fail"}, id="mode"),
    pytest.param("chgrp root /dev/kvm", {"/dev/kvm": "fail"}, id="group"),
    pytest.param("groupdel kvm", {"/dev/kvm": "fail"}, id="no-group"),
    pytest.param(f"echo 1 > {KSM}", {"KSM": "warn"}, id="ksm"),
    pytest.param(f"echo never > {THP}", {"THP": "warn"}, id="thp"),
    pytest.param(f"echo force > {NX}", {"nx_huge_pages": "warn"}, id="nx"),
    pytest.param("chcpu -d 3,6", {"offline CPUs": "warn"}, id="offline"),
]


@pytest.mark.parametrize(("breaking", "wrong"), BROKEN)
def test_what_is_broken_is_seen_and_its_fix_fixes(
    breaking: str, wrong: dict[str, str], host: Host, sound: dict[str, str]
) -> None:
    host.run(breaking)
    found = asked(host)
    assert verdicts(found) == {**sound, **wrong}
    for fix in dict.fromkeys(found[what]["fix"] for what, verdict in wrong.items() if verdict in ("warn", "fail")):
        if found["/dev/kvm"]["verdict"] != "fail" or "/dev/kvm" in fix:
            host.run(fix)
    if "modprobe" in breaking:
        host.run(SETTLED)
    host.run("rm -f /etc/modprobe.d/zz-kvmsup.conf /etc/udev/rules.d/99-kvmsup.rules")
    assert verdicts(asked(host)) == sound


def test_the_rule_outlives_the_device(host: Host, sound: dict[str, str]) -> None:
    host.put(BAD_RULE.encode(), "/etc/udev/rules.d/60-bad.rules")
    host.run(f"udevadm control --reload; {ANEW}")
    found = asked(host)
    assert verdicts(found) == {**sound, "/dev/kvm": "fail"}
    assert "its group is root, not kvm, and mode 0600" in found["/dev/kvm"]["told"]
    host.run(found["/dev/kvm"]["fix"])
    assert verdicts(asked(host)) == sound
    host.run(f"udevadm control --reload; {ANEW}")
    assert verdicts(asked(host)) == sound
    host.run(f"rm /etc/udev/rules.d/60-bad.rules /etc/udev/rules.d/99-kvmsup.rules; udevadm control --reload; {ANEW}")


def test_looking_loads_no_module(host: Host, sound: dict[str, str]) -> None:
    """Opening a node without a driver, as systemd-tmpfiles makes it at boot, has the kernel load one."""
    host.run("modprobe -r kvm_amd; modprobe -r kvm; mknod -m 0660 /dev/kvm c 10 232; chgrp kvm /dev/kvm")
    assert asked(host)["KVM"]["told"] == "not tried: no module of KVM is loaded"
    assert host.run("lsmod | grep ^kvm", check=False).stdout == ""
    host.run(f"rm /dev/kvm; modprobe kvm_amd; {SETTLED}")
    assert verdicts(asked(host)) == sound


def test_the_register_is_read_where_it_can_be(host: Host) -> None:
    host.run("modprobe -r kvm_amd; modprobe msr")
    assert asked(host)["firmware"]["told"] == "SVM is on, by the CPU's register"
    host.run(f"modprobe -r msr; modprobe kvm_amd; {SETTLED}")


@pytest.fixture
def isolating(host: Host) -> Iterator[Host]:
    """The lab is not booted with isolcpus=5 nohz_full=5; the kernel's word for it is put in place."""
    files = [f"/sys/devices/system/cpu/{name}" for name in ("isolated", "nohz_full")]
    host.run("echo 5 > /run/five")
    for file in files:
        host.run(f"mount --bind /run/five {file}")
    yield host
    host.run(f"systemctl stop stray; umount {' '.join(files)}")


def test_who_runs_on_isolated_cpus(isolating: Host, sound: dict[str, str]) -> None:
    """All threads are real; only the kernel's own may be born on CPU 5 at any time."""
    host = isolating
    host.run("for pid in $(ps -eo pid=); do taskset -acp 0-4,6-7 $pid; done >/dev/null 2>&1; sleep 1")
    host.run("systemd-run -q --unit stray taskset -c 5 sh -c 'while sleep 0.2; do :; done'; sleep 1")
    found = asked(host)
    assert verdicts(found) == {**sound, "isolated cores": "warn", "isolated CPUs": "warn"}
    stray = shell(host, "systemctl show -P MainPID stray")
    assert f"sh ({stray}) on CPU 5" in found["isolated CPUs"]["told"]
    assert found["isolated cores"]["told"].startswith("CPU 4 not isolated")
    host.run(f"{found['isolated CPUs']['fix']}\nsleep 1", check=False)
    assert f"({stray})" not in asked(host)["isolated CPUs"]["told"]
    assert shell(host, f"taskset -cp {stray}").endswith(": 0-4,6,7")


def test_with_a_guest(host: Host, sound: dict[str, str]) -> None:
    """KSM that was turned off under a guest that consents, and memory of a guest that went to swap."""
    host.put(b'[ksm]\npolicy = "always"\n', "/etc/kvmsup.toml")
    guests.configure(host, {"consents": guests.SHARED + "ksm = true\n"})
    guests.start(host, "consents")
    host.wait_for(f"[ $(cat {KSM}) = 1 ]", timeout=60)
    assert verdicts(asked(host)) == sound
    host.run(f"echo 0 > {KSM}")
    found = asked(host)
    assert verdicts(found) == {**sound, "KSM": "warn"}
    host.run(found["KSM"]["fix"], timeout=120)
    host.wait_for(f"[ $(cat {KSM}) = 1 ]", timeout=60)
    assert asked(host)["KSM"]["told"] == "on, for consents"
    host.run("dd if=/dev/zero of=/swap bs=1M count=64 status=none; chmod 600 /swap; mkswap -q /swap; swapon /swap")
    reclaim = "/sys/fs/cgroup/kvm.slice/kvm-shared.slice/kvm@consents.service/memory.reclaim"
    host.run(f"echo 20M > {reclaim}", check=False)
    found = asked(host)
    assert verdicts(found) == {**sound, "swap": "warn"}
    held = int(shell(host, f"awk '/^VmSwap/ {{print $2}}' /proc/{guests.pid(host, 'consents')}/status"))
    assert found["swap"]["told"] == f"guests' memory is in it: {held >> 10} MiB of consents"
    guests.kill(host, "consents")
    host.run("swapoff /swap; rm /swap /etc/kvmsup.toml")
    assert verdicts(asked(host)) == sound
