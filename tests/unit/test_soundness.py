# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup host on hosts made of files: what is read, and how it is judged.

Intel's part (EPT, VPID, unrestricted_guest, ple_gap) is tested here over trees written by hand only, the lab being
AMD. That /dev/kvm is a character device and answers is put in, as no file can do either; the lab has a real one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.cli import host as verb
from kvmsup.effects import claims, facts
from kvmsup.model.claim import Claim
from kvmsup.model.hostfacts import Facts, Intrusion, Isolated, Probe, Programs
from kvmsup.plan import soundness
from kvmsup.plan.finding import VERDICTS, Finding
from tests.unit import soundtrees, trees
from tests.unit.hosts import claim

WORKS = Probe("", 0, 12)
PROGRAMS = Programs("systemd 257 (257.7-1)", "QEMU emulator version 10.0.3 (Debian 1:10.0.3+ds-0+deb13u1)")
CPU = "/sys/devices/system/cpu"


def read(root: Path, probe: Probe | None = WORKS) -> Facts:
    """What is there, with a /dev/kvm that is one and answers with `probe`."""
    found = facts.read(str(root))
    device = found.kvm.device and found.kvm.device._replace(character=True)
    asked = found.kvm.probe and probe
    return found._replace(kvm=found.kvm._replace(device=device, probe=asked))


def judge(root: Path, probe: Probe | None = WORKS, programs: Programs = PROGRAMS) -> dict[str, Finding]:
    found = soundness.findings(read(root, probe), programs)
    assert len({one.what for one in found}) == len(found)
    return {one.what: one for one in found}


def others(found: dict[str, Finding], verdict: str = "ok") -> dict[str, str]:
    """The verdicts that are not `verdict`."""
    return {what: one.verdict for what, one in found.items() if one.verdict != verdict}


def held(root: Path, *guests: Claim) -> None:
    for one in guests:
        Path(claims.path(str(root), one.guest)).parent.mkdir(parents=True, exist_ok=True)
        claims.write(str(root), one)


def make(kind: str, root: Path) -> dict[str, str]:
    files = {"intel": soundtrees.intel, "amd": soundtrees.amd, "arm": soundtrees.arm}[kind](str(root))
    os.chmod(root / "dev/kvm", 0o660)
    return files


@pytest.mark.parametrize("kind", ["intel", "amd", "arm"])
def test_a_good_host(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    found = judge(tmp_path)
    assert others(found) == {}
    assert not any(one.fix for one in found.values())
    assert {one.area for one in found.values()} == set(soundness.AREAS)


def test_what_is_told_of_intel(tmp_path: Path) -> None:
    make("intel", tmp_path)
    found = judge(tmp_path)
    assert {what: found[what].told for what in found if found[what].area == "virtualisation"} == {
        "CPU": "VT-x, Intel(R) Xeon(R) Gold 6338",
        "firmware": "VT-x is on: KVM makes machines with it",
        "module": "kvm_intel is loaded",
        "EPT": "in use",
        "VPID": "in use",
        "unrestricted guest": "in use",
        "pause exits": "on (ple_gap=128): a vCPU that spins makes room for others",
        "nested": "on: a guest with the feature vmx can run guests",
        "nx_huge_pages": "on: this CPU needs it against a guest that would hang the host",
        "halt polling": "up to 200 µs before an idle vCPU gives its CPU away",
        "/dev/kvm": "mode 0660, group kvm: guests may open it",
        "KVM": "works: API 12, a machine could be made",
        "IOMMU": "in use: dmar0",
        "hypervisor": "none below: this host is the machine itself",
    }
    assert found["topology"].told == "1 package, 2 nodes, 4 cores, 4 CPUs"
    assert found["2M pages"].told == "node 0: none; node 1: 512, 256 free"
    assert found["swap"].told == "1 MiB of 8191 MiB in use, nothing of a guest's"


RELOAD = "modprobe -r {0} && modprobe {0}  # while no guest runs"


@pytest.mark.parametrize(
    ("kind", "module", "parameter", "what", "verdict", "wanted"),
    [
        ("intel", "kvm_intel", "ept", "EPT", "fail", "1"),
        ("intel", "kvm_intel", "vpid", "VPID", "warn", "1"),
        ("intel", "kvm_intel", "unrestricted_guest", "unrestricted guest", "warn", "1"),
        ("amd", "kvm_amd", "npt", "NPT", "fail", "1"),
    ],
)
def test_a_switch_that_is_off(
    kind: str, module: str, parameter: str, what: str, verdict: str, wanted: str, tmp_path: Path
) -> None:
    """The CPU's flag is there all along: only the module knows what it does."""
    make(kind, tmp_path)
    path = soundtrees.PARAMETERS.format(module) + parameter
    for off in ("N", "0"):
        trees.write(str(tmp_path), path, off)
        found = judge(tmp_path)
        assert others(found) == {what: verdict}
        assert f"({parameter}=N) although the CPU has it" in found[what].told
        line = f"echo 'options {module} {parameter}={wanted}' >> /etc/modprobe.d/zz-kvmsup.conf"
        assert found[what].fix.splitlines() == [line, RELOAD.format(module)]
    trees.write(str(tmp_path), "/proc/cmdline", f"quiet {module.replace('_', '-')}.{parameter}=0 ro")
    fix = judge(tmp_path)[what].fix
    assert fix == f"take {module}.{parameter}=0 off the kernel's command line, then reboot"
    trees.write(str(tmp_path), path, "perhaps")
    assert judge(tmp_path)[what].told == f"{path} says 'perhaps'"
    assert judge(tmp_path)[what].verdict == "unknown"
    (tmp_path / path[1:]).unlink()
    assert (judge(tmp_path)[what].verdict, judge(tmp_path)[what].told) == ("unknown", f"{path} cannot be read")


def test_a_cpu_without_paging(tmp_path: Path) -> None:
    make("intel", tmp_path)
    trees.write(str(tmp_path), "/proc/cpuinfo", soundtrees.cpuinfo("GenuineIntel", "Core 2", "vmx"))
    for name in ("ept", "vpid", "unrestricted_guest"):
        trees.write(str(tmp_path), soundtrees.PARAMETERS.format("kvm_intel") + name, "N")
    trees.write(str(tmp_path), soundtrees.PARAMETERS.format("kvm_intel") + "ple_gap", "0")
    found = judge(tmp_path)
    assert others(found) == {"EPT": "warn", "VPID": "warn", "unrestricted guest": "warn"}
    assert found["EPT"].fix == "take a newer CPU"


@pytest.mark.parametrize(
    ("kind", "module", "name"), [("intel", "kvm_intel", "ple_gap"), ("amd", "kvm_amd", "pause_filter_count")]
)
def test_pause_exits_matter_to_shared_guests(kind: str, module: str, name: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    trees.write(str(tmp_path), soundtrees.PARAMETERS.format(module) + name, "0")
    held(tmp_path, claim("own"))
    assert judge(tmp_path)["pause exits"].told == f"off ({name}=0): right where guests own their CPUs"
    held(tmp_path, claim("shares", dedicated=False))
    found = judge(tmp_path)
    assert others(found) == {"pause exits": "warn"}
    assert f"options {module} {name}={128 if kind == 'intel' else 3000}" in found["pause exits"].fix


@pytest.mark.parametrize(
    ("value", "bug", "verdict"),
    [
        ("Y", "Not affected", "warn"),
        ("N", "Not affected", "ok"),
        ("never", "Not affected", "ok"),
        ("N", "KVM: Vulnerable", "warn"),
        ("Y", "KVM: Mitigation: Split huge pages", "ok"),
        ("x", "Not affected", "unknown"),
        ("Y", None, "unknown"),
    ],
)
def test_nx_huge_pages(value: str, bug: str | None, verdict: str, tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), soundtrees.PARAMETERS.format("kvm") + "nx_huge_pages", value)
    if bug is None:
        (tmp_path / f"{CPU}/vulnerabilities/itlb_multihit"[1:]).unlink()
    else:
        trees.write(str(tmp_path), f"{CPU}/vulnerabilities/itlb_multihit", bug)
    found = judge(tmp_path)["nx_huge_pages"]
    assert found.verdict == verdict
    assert (found.fix == "echo auto > /sys/module/kvm/parameters/nx_huge_pages") is (verdict == "warn")


def unload(root: Path, *modules: str) -> None:
    for module in modules:
        for file in (root / "sys/module" / module / "parameters").iterdir():
            file.unlink()
        (root / "sys/module" / module / "parameters").rmdir()
        (root / "sys/module" / module).rmdir()


def test_a_module_that_is_not_loaded(tmp_path: Path) -> None:
    make("intel", tmp_path)
    unload(tmp_path, "kvm_intel", "kvm")
    (tmp_path / "dev/kvm").unlink()
    found = judge(tmp_path)
    assert others(found) == {"firmware": "unknown", "module": "warn", "EPT": "unknown", "/dev/kvm": "warn"}
    assert found["module"].fix == found["/dev/kvm"].fix == "modprobe kvm_intel"
    (tmp_path / "sys/module/vboxdrv").mkdir()
    told = judge(tmp_path)["module"].told
    assert told.endswith("unless vboxdrv of another hypervisor is in its way")
    # A node without a driver is there from boot on; opening it would load the module.
    trees.write(str(tmp_path), "/dev/kvm", "")
    assert judge(tmp_path)["KVM"].told == "not tried: no module of KVM is loaded"


MESSAGES = [
    "x86/cpu: VMX (outside TXT) disabled by BIOS",
    "kvm: disabled by bios",
    "kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_log_says_that_the_firmware_forbids_it(message: str, tmp_path: Path) -> None:
    make("amd", tmp_path)
    unload(tmp_path, "kvm_amd", "kvm")
    (tmp_path / "dev/kvm").unlink()
    trees.write(str(tmp_path), "/dev/kmsg", f"6,1,1,-;x86/cpu: SGX disabled by BIOS.\n SUBSYSTEM=x\n3,2,1,-;{message}")
    found = judge(tmp_path)["firmware"]
    assert (found.verdict, found.told) == ("fail", "SVM is switched off")
    assert found.fix == "in the firmware's set-up (BIOS), turn on SVM Mode"
    trees.write(str(tmp_path), "/dev/kmsg", "6,1,1,-;x86/cpu: SGX disabled by BIOS.")
    assert judge(tmp_path)["firmware"].verdict == "unknown"


@pytest.mark.parametrize(
    ("kind", "register", "value", "verdict"),
    [
        ("intel", 0x3A, 0b001, "fail"),
        ("intel", 0x3A, 0b101, "ok"),
        ("intel", 0x3A, 0b000, "ok"),  # not locked: the kernel turns it on (arch/x86/kernel/cpu/feat_ctl.c)
        ("amd", 0xC0010114, 0b11000, "fail"),
        ("amd", 0xC0010114, 0b01000, "ok"),
    ],
)
def test_the_register_tells(kind: str, register: int, value: int, verdict: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    unload(tmp_path, f"kvm_{kind}", "kvm")
    (tmp_path / "dev/cpu/0").mkdir(parents=True)
    descriptor = os.open(tmp_path / "dev/cpu/0/msr", os.O_WRONLY | os.O_CREAT)
    os.pwrite(descriptor, value.to_bytes(8, "little"), register)
    os.close(descriptor)
    assert judge(tmp_path)["firmware"].verdict == verdict


def no_flag(root: Path, *, vendor: str = "GenuineIntel", flags: str = "") -> None:
    trees.write(str(root), "/proc/cpuinfo", soundtrees.cpuinfo(vendor, "X", flags))
    unload(root, "kvm_intel", "kvm")
    (root / "dev/kvm").unlink()


def test_a_cpu_without_virtualisation(tmp_path: Path) -> None:
    make("intel", tmp_path)
    no_flag(tmp_path)
    found = judge(tmp_path)
    assert others(found) == {"CPU": "fail", "/dev/kvm": "fail"}
    assert found["CPU"].fix.startswith("in the firmware's set-up (BIOS), turn on Intel Virtualization Technology")
    trees.write(str(tmp_path), "/dev/kmsg", f"6,1,1,-;{MESSAGES[0]}")
    assert judge(tmp_path)["CPU"].told == "VT-x is switched off in the firmware"


@pytest.mark.parametrize(("vendor", "module"), [("GenuineIntel", "kvm_intel"), ("AuthenticAMD", "kvm_amd")])
def test_a_guest_without_nesting(vendor: str, module: str, tmp_path: Path) -> None:
    make("intel", tmp_path)
    no_flag(tmp_path, vendor=vendor, flags="hypervisor")
    found = judge(tmp_path)
    assert others(found) == {"CPU": "fail", "/dev/kvm": "fail", "hypervisor": "warn"}
    assert f"options {module} nested=1" in found["CPU"].fix
    assert "itself a guest (Example)" in found["hypervisor"].told


def test_inside_a_hypervisor(tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), "/proc/cpuinfo", soundtrees.cpuinfo("AuthenticAMD", "X", "svm npt hypervisor"))
    trees.write(str(tmp_path), "/sys/devices/system/clocksource/clocksource0/current_clocksource", "kvm-clock")
    found = judge(tmp_path)
    assert others(found) == {"hypervisor": "warn", "clock": "warn"}
    assert "+invtsc" in found["clock"].fix


def test_kvm_by_other_means(tmp_path: Path) -> None:
    make("intel", tmp_path)
    unload(tmp_path, "kvm_intel")
    trees.write(str(tmp_path), "/proc/cpuinfo", soundtrees.cpuinfo("GenuineIntel", "X", ""))
    assert others(judge(tmp_path)) == {"CPU": "unknown"}


def test_elsewhere_than_on_x86(tmp_path: Path) -> None:
    make("arm", tmp_path)
    assert judge(tmp_path)["CPU"].told == "aarch64 shows no flag for it: /dev/kvm alone tells"
    assert judge(tmp_path, Probe("create", errno.EINVAL, 12))["KVM"].verdict == "ok"
    (tmp_path / "dev/kvm").unlink()
    assert others(judge(tmp_path)) == {"/dev/kvm": "fail"}


def test_the_device_of_a_guests_user(tmp_path: Path) -> None:
    make("amd", tmp_path)
    device, group = tmp_path / "dev/kvm", str(tmp_path / "etc/group")
    own = Path(group).read_text()
    device.chmod(0o600)
    found = judge(tmp_path)
    assert others(found) == {"/dev/kvm": "fail"}
    assert found["/dev/kvm"].told == "guests may not open it: mode 0600 does not let the group read and write"
    assert found["/dev/kvm"].fix.splitlines() == [
        'echo \'KERNEL=="kvm", GROUP="kvm", MODE="0660"\' > /etc/udev/rules.d/99-kvmsup.rules',
        "udevadm control --reload && udevadm settle",
        "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm",
    ]
    Path(group).write_text(f"kvm:x:{os.getgid() + 1}:\nusers:x:{os.getgid()}:\n")
    assert judge(tmp_path)["/dev/kvm"].told == (
        "guests may not open it: its group is users, not kvm, and mode 0600 does not let the group read and write"
    )
    device.chmod(0o660)
    assert judge(tmp_path)["/dev/kvm"].told == "guests may not open it: its group is users, not kvm"
    device.chmod(0o666)
    assert judge(tmp_path)["/dev/kvm"].verdict == "ok"
    device.chmod(0o660)
    Path(group).write_text("root:x:0:\n")
    assert judge(tmp_path)["/dev/kvm"].fix.startswith("systemd-sysusers\n")
    Path(group).write_text(own)
    assert others(judge(tmp_path)) == {}
    device.unlink()
    found = judge(tmp_path)
    assert others(found) == {"/dev/kvm": "fail"}
    assert found["/dev/kvm"].fix == "mknod -m 0660 /dev/kvm c 10 232 && chgrp kvm /dev/kvm"


def test_a_file_is_no_device(tmp_path: Path) -> None:
    """Nothing put in: this is what open and ioctl said of the file."""
    make("amd", tmp_path)
    found = facts.read(str(tmp_path))
    assert found.kvm.probe == Probe("version", errno.ENOTTY, 0)
    told = {one.what: (one.verdict, one.told) for one in soundness.findings(found, PROGRAMS)}
    assert told["/dev/kvm"] == ("fail", "it is no device")
    assert "KVM" not in told


@pytest.mark.parametrize(
    ("probe", "verdict", "told"),
    [
        (Probe("open", errno.EACCES, 0), "unknown", "whether it works is for root and the group kvm to try"),
        (Probe("open", errno.ENODEV, 0), "fail", "/dev/kvm cannot be opened: No such device"),
        (Probe("version", errno.ENOTTY, 0), "fail", "/dev/kvm is not KVM's"),
        (Probe("version", 0, 11), "fail", "/dev/kvm speaks API 11, not 12"),
        (Probe("create", errno.EBUSY, 12), "fail", "another hypervisor holds VT-x: KVM can make no machine"),
        (Probe("create", errno.ENOMEM, 12), "fail", "it can make no machine: Cannot allocate memory"),
    ],
)
def test_a_kvm_that_does_not_work(probe: Probe, verdict: str, told: str, tmp_path: Path) -> None:
    make("intel", tmp_path)
    found = judge(tmp_path, probe)
    assert others(found) == {"KVM": verdict}
    assert found["KVM"].told == told
    assert found["KVM"].fix


def test_virtualbox_holds_it(tmp_path: Path) -> None:
    make("intel", tmp_path)
    (tmp_path / "sys/module/vboxdrv").mkdir()
    found = judge(tmp_path, Probe("create", errno.EBUSY, 12))["KVM"]
    assert found.told == "another hypervisor (vboxdrv) holds VT-x: KVM can make no machine"
    assert found.fix.startswith("modprobe -r vboxnetadp vboxnetflt vboxdrv")


@pytest.mark.parametrize(("kind", "option"), [("intel", "intel_iommu=on"), ("amd", "amd_iommu=on")])
def test_an_iommu_that_is_idle(kind: str, option: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    unit = next((tmp_path / "sys/class/iommu").iterdir())
    (unit / "name").unlink()
    unit.rmdir()
    found = judge(tmp_path)
    assert others(found) == {"IOMMU": "warn"}
    assert found["IOMMU"].fix == f"add to the kernel's command line, then reboot: {option} iommu=pt"


@pytest.mark.parametrize(
    ("release", "verdict"),
    [("6.1.0-37-amd64", "warn"), ("6.2.0", "ok"), ("5.10.0-9", "fail"), ("7.0-rc1", "ok"), ("next", "unknown")],
)
def test_kernel(release: str, verdict: str, tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), "/proc/sys/kernel/osrelease", release)
    assert others(judge(tmp_path)) == ({"kernel": verdict} if verdict != "ok" else {})


def test_control_groups(tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), "/sys/fs/cgroup/cgroup.controllers", "cpu io memory")
    assert "unified_cgroup_hierarchy=1" in judge(tmp_path)["cgroup"].fix
    trees.write(str(tmp_path), "/proc/cmdline", "cgroup_disable=memory,cpuset")
    found = judge(tmp_path)
    assert others(found) == {"cgroup": "fail"}
    assert found["cgroup"].fix.startswith("take cgroup_disable=cpuset off")
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").unlink()
    assert judge(tmp_path)["cgroup"].told == "version 2 is not at /sys/fs/cgroup"


@pytest.mark.parametrize(
    ("programs", "wrong"),
    [
        (Programs("systemd 252 (252.39-1~deb12u1)", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), {}),
        (Programs("systemd 251", "QEMU emulator version 7.1.0"), {"systemd": "fail", "QEMU": "fail"}),
        (Programs("", ""), {"systemd": "fail", "QEMU": "fail"}),
        (Programs(None, None), {"systemd": "unknown", "QEMU": "unknown"}),
    ],
)
def test_programs(programs: Programs, wrong: dict[str, str], tmp_path: Path) -> None:
    make("amd", tmp_path)
    assert others(judge(tmp_path, programs=programs)) == wrong


def isolate(root: Path, isolated: str, tickless: str, line: str = "x") -> None:
    trees.write(str(root), f"{CPU}/isolated", isolated)
    trees.write(str(root), f"{CPU}/nohz_full", tickless)
    trees.write(str(root), "/proc/cmdline", line)


@pytest.mark.parametrize(
    ("isolated", "tickless", "line", "verdict", "told"),
    [
        ("2-3", "2-3", "x", "ok", "CPU 2-3 by isolcpus= and nohz_full="),
        ("2-3", "(null)", "x", "ok", "CPU 2-3 by isolcpus="),
        ("2-3", "(null)", "rcu_nocbs=1-3", "ok", "CPU 2-3 by isolcpus="),
        ("2-3", "(null)", "rcu_nocbs=all", "ok", "CPU 2-3 by isolcpus="),
        ("2-3", "(null)", "rcu_nocbs=2-N", "ok", "CPU 2-3 by isolcpus="),
        ("2-3", "2-3", "rcu_nocbs=1", "ok", "CPU 2-3 by isolcpus= and nohz_full="),
        ("2-3", "1-3", "x", "warn", "isolcpus=2-3 and nohz_full=1-3 differ: half of the work is undone"),
        ("", "2", "x", "warn", "nohz_full=2 without isolcpus=: the scheduler still puts other threads there"),
        ("", "", "nohz_full=2", "warn", "nohz_full= on the command line, and the kernel isolates no CPU"),
        ("", "", "rcu_nocbs=2", "ok", "rcu_nocbs=2 only; guests' CPUs are kept apart while they run"),
        ("", "", "x", "ok", "none at boot; guests' CPUs are kept apart while they run"),
    ],
)
def test_isolation(isolated: str, tickless: str, line: str, verdict: str, told: str, tmp_path: Path) -> None:
    make("amd", tmp_path)
    isolate(tmp_path, isolated, tickless, line)
    found = judge(tmp_path)
    assert others(found) == ({"isolation": verdict} if verdict != "ok" else {})
    assert found["isolation"].told == told


def test_isolated_cpus_that_keep_their_callbacks(tmp_path: Path) -> None:
    make("amd", tmp_path)
    isolate(tmp_path, "2-3", "", "isolcpus=2-3 rcu_nocbs=2")
    found = judge(tmp_path)
    assert others(found) == {"RCU callbacks": "warn"}
    assert found["RCU callbacks"].told == "rcu_nocbs=2 leaves out CPU 3 of isolcpus=: RCU's callbacks run there"
    assert found["RCU callbacks"].fix == "on the kernel's command line: isolcpus=2-3 nohz_full=2-3; then reboot"


def test_what_ran_on_the_cpus_that_a_guest_has_isolated(tmp_path: Path) -> None:
    make("amd", tmp_path)
    base = read(tmp_path)
    several = (Intrusion(3, "softirq", name, 0) for name in ("c", "d"))
    ran = (
        Intrusion(2, "interrupt", "x", 7),
        Intrusion(3, "interrupt", "y", 1),
        Intrusion(3, "thread", "z/3", 1),
        *several,
    )
    guests = (
        Isolated("a", frozenset((2, 3)), ran, ""),
        Isolated("b", frozenset((1,)), None, ""),
        Isolated("c", frozenset((0,)), ran, "somebody has moved acpi (9) there again"),
    )
    found = soundness.findings(base._replace(cpus=base.cpus._replace(guests=guests)), PROGRAMS)
    told = [(one.verdict, one.told, one.fix) for one in found if one.what == "isolated guests"]
    always = "on the kernel's command line, for good, would leave fewer"
    assert told == [
        (
            "ok",
            "CPU 2-3 of a: 8 interrupts, 0 softirqs, and 1 switch to the kernel's own threads since it started;"
            " on CPU 2 x 7; on CPU 3 y 1, z/3 1, c 0 and 1 more;"
            f" isolcpus=2-3 nohz_full=2-3 {always}",
            "",
        ),
        ("ok", f"CPU 1 of b: not counted; isolcpus=1 nohz_full=1 {always}", ""),
        (
            "warn",
            "CPU 0 of c: somebody has moved acpi (9) there again",
            "IRQBALANCE_BANNED_CPULIST=0 in /etc/default/irqbalance, where that runs; then\nsystemctl restart kvm@c",
        ),
    ]


def test_half_a_core_is_isolated(tmp_path: Path) -> None:
    make("amd", tmp_path)
    for number in (2, 3):
        trees.write(str(tmp_path), f"{CPU}/cpu{number}/topology/thread_siblings_list", "2-3")
    isolate(tmp_path, "3", "3")
    found = judge(tmp_path)
    assert others(found) == {"isolated cores": "warn"}
    assert found["isolated cores"].fix == "on the kernel's command line: isolcpus=2-3 nohz_full=2-3; then reboot"


def thread(
    root: Path, tid: int, name: str, cpu: int, *, flags: int = 0, group: str = "/system.slice/x.service"
) -> None:
    trees.write(str(root), f"/proc/{tid}/task/{tid}/stat", trees.stat(name, cpu, flags))
    trees.write(str(root), f"/proc/{tid}/cgroup", f"0::{group}")


def test_who_runs_on_isolated_cpus(tmp_path: Path) -> None:
    make("amd", tmp_path)
    isolate(tmp_path, "2-3", "2-3")
    bound, kernel = 0x04000000, 0x00200000
    thread(tmp_path, 20, "migration/2", 2, flags=bound | kernel)
    thread(tmp_path, 21, "CPU 0/KVM", 2, group="/kvm.slice/kvm-dedicated.slice/kvm@web.service")
    thread(tmp_path, 22, "kvm-pit/21", 2, flags=kernel, group="/")
    thread(tmp_path, 23, "sshd", 1)
    trees.write(str(tmp_path), "/proc/24/task/24/stat", "cut off")
    assert others(judge(tmp_path)) == {}
    thread(tmp_path, 30, "a (2) b", 3)
    for tid in range(31, 34):
        thread(tmp_path, tid, "irqbalance", 2)
    found = judge(tmp_path)
    assert others(found) == {"isolated CPUs": "warn"}
    assert found["isolated CPUs"].told == (
        "other threads last ran there: a (2) b (30) on CPU 3, irqbalance (31) on CPU 2, irqbalance (32) on CPU 2"
        " and 1 more"
    )
    assert found["isolated CPUs"].fix.startswith("for tid in 30 31 32 33; do taskset -cp 0-1 $tid; done")
    (tmp_path / "proc/1/stat").unlink()
    assert judge(tmp_path)["isolated CPUs"].verdict == "unknown"


def test_simultaneous_threads(tmp_path: Path) -> None:
    make("intel", tmp_path)
    trees.write(str(tmp_path), f"{CPU}/smt/control", "on")
    mds = "Mitigation: Clear CPU buffers; SMT vulnerable"
    trees.write(str(tmp_path), f"{CPU}/vulnerabilities/mds", mds)
    trees.write(str(tmp_path), f"{CPU}/vulnerabilities/spectre_v1", "Vulnerable")
    found = judge(tmp_path)
    assert others(found) == {"SMT siblings": "warn"}
    assert found["SMT siblings"].told == "guests on one core can read each other's data (mds)"
    l1tf = "Mitigation: PTE Inversion; VMX: vulnerable"
    trees.write(str(tmp_path), f"{CPU}/vulnerabilities/l1tf", l1tf)
    trees.write(str(tmp_path), f"{CPU}/vulnerabilities/vmscape", "Vulnerable")
    found = judge(tmp_path)
    assert others(found) == {"SMT siblings": "warn", "vulnerabilities": "warn"}
    assert found["vulnerabilities"].told == "guests may read what is not theirs (l1tf, vmscape)"
    assert "microcode" in found["vulnerabilities"].fix
    trees.write(str(tmp_path), "/proc/cmdline", "mitigations=off")
    assert judge(tmp_path)["vulnerabilities"].fix.startswith("take mitigations=off off")


def test_offline_cpus(tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), f"{CPU}/online", "0-2")
    found = judge(tmp_path)
    assert others(found) == {"offline CPUs": "warn"}
    assert found["offline CPUs"].fix == "chcpu -e 3"


def test_memory(tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), "/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    trees.write(str(tmp_path), "/sys/kernel/mm/ksm/run", "1")
    held(tmp_path, claim("free", nodes=""), claim("bound", nodes="0"), claim("shares", dedicated=False, nodes=""))
    trees.write(str(tmp_path), "/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@free.service/cgroup.procs", "77")
    trees.write(str(tmp_path), "/proc/77/status", "Name:\tqemu\nVmSwap:\t    2048 kB\nThreads:\t1")
    found = judge(tmp_path)
    assert others(found) == {"THP": "warn", "KSM": "warn", "swap": "warn", "NUMA balancing": "warn"}
    assert found["swap"].told == "guests' memory is in it: 2 MiB of free"
    assert "halts free to move pages" in found["NUMA balancing"].told
    trees.write(str(tmp_path), "/proc/sys/kernel/numa_balancing", "0")
    assert judge(tmp_path)["NUMA balancing"].verdict == "ok"


@pytest.mark.parametrize(
    ("run", "consents", "policy", "verdict", "told"),
    [
        ("1", True, "always", "ok", "on, for web"),
        ("1", False, "always", "warn", "on, although no guest that runs consents to it"),
        ("0", True, "always", "warn", "off, although web would have it on"),
        ("0", True, "pressure", "ok", "off: it waits until memory is short, as /etc/kvmsup.toml says"),
        ("0", True, "never", "ok", "off, as /etc/kvmsup.toml says"),
        ("0", False, "always", "ok", "off: no guest that runs asks for it"),
        ("x", False, "always", "unknown", "/sys/kernel/mm/ksm/run cannot be read"),
    ],
)
def test_ksm(run: str, consents: bool, policy: str, verdict: str, told: str, tmp_path: Path) -> None:
    make("amd", tmp_path)
    trees.write(str(tmp_path), "/sys/kernel/mm/ksm/run", run)
    trees.write(str(tmp_path), "/etc/kvmsup.toml", f'[ksm]\npolicy = "{policy}"')
    held(tmp_path, claim("web", ksm=consents))
    found = judge(tmp_path)["KSM"]
    assert (found.verdict, found.told) == (verdict, told)


def test_a_claim_that_is_none(tmp_path: Path) -> None:
    make("amd", tmp_path)
    held(tmp_path, claim("web"))
    Path(claims.path(str(tmp_path), "web")).write_text("garbage")
    assert others(judge(tmp_path)) == {"KSM": "unknown"}


# What each of these files would have told is not known without it, and nothing else changes.
NEEDED = [
    ("/proc/sys/kernel/osrelease", "kernel"),
    ("/proc/sys/kernel/numa_balancing", "NUMA balancing"),
    ("/proc/swaps", "swap"),
    ("/proc/cmdline", "isolation"),
    ("/sys/kernel/mm/ksm/run", "KSM"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "THP"),
    ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "clock"),
    ("/sys/module/kvm/parameters/halt_poll_ns", "halt polling"),
    ("/sys/module/kvm_amd/parameters/nested", "nested"),
    ("/sys/module/kvm_amd/parameters/pause_filter_count", "pause exits"),
]


@pytest.mark.parametrize(("path", "what"), NEEDED)
def test_what_cannot_be_read_is_not_ok(path: str, what: str, tmp_path: Path) -> None:
    make("amd", tmp_path)
    (tmp_path / path[1:]).unlink()
    assert others(judge(tmp_path)) == {what: "unknown"}


def test_a_bare_root(tmp_path: Path) -> None:
    found = judge(tmp_path)
    assert not [
        one for one in found.values() if one.area == "virtualisation" and one.verdict == "ok" and one.what != "IOMMU"
    ]
    assert found["topology"].verdict == "fail"


GARBAGE = st.one_of(
    st.none(),
    st.just(b"/"),
    st.binary(max_size=80),
    st.sampled_from((b"", b"\n\n", b"-1", b"9" * 5000, b"0-", b"Y N", b"Node 0 MemTotal: x kB", b"0-8191", b"[")),
)


@pytest.fixture(scope="module", params=["intel", "amd", "arm"])
def busy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A host with a guest, isolated CPUs and a stray, and its files."""
    root = tmp_path_factory.mktemp("busy")
    files = make(request.param, root)
    held(root, claim("web", ksm=True))
    group = "/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@web.service/cgroup.procs"
    more = {f"{CPU}/isolated": "2-3", "/proc/30/task/30/stat": trees.stat("x", 3), "/proc/30/cgroup": "0::/x"}
    more |= {group: "30", "/proc/30/status": "VmSwap: 3 kB", "/etc/kvmsup.toml": "[ksm]"}
    soundtrees.write(str(root), more)
    return root, sorted({*files, *more, "/run/kvmsup/claims/web.env"})


@contextlib.contextmanager
def harmed(there: Path, content: bytes | None) -> Iterator[None]:
    """For a while `there` holds `content`; it is a directory where that is b"/", and gone where it is None."""
    before = there.read_bytes()
    there.unlink()
    if content == b"/":
        there.mkdir()
    elif content is not None:
        there.write_bytes(content)
    try:
        yield
    finally:
        if content == b"/":
            there.rmdir()
        there.write_bytes(before)


@given(data=st.data())
def test_whatever_the_files_hold(busy: tuple[Path, list[str]], data: st.DataObject) -> None:
    root, files = busy
    harm = data.draw(st.dictionaries(st.sampled_from(files), GARBAGE, max_size=12))
    with contextlib.ExitStack() as stack:
        for path, content in harm.items():
            stack.enter_context(harmed(root / path[1:], content))
        found = soundness.findings(facts.read(str(root)), PROGRAMS)
    assert {one.area for one in found} == set(soundness.AREAS)
    for one in found:
        assert one.verdict in VERDICTS
        assert one.told
        assert bool(one.fix) or one.verdict in ("ok", "unknown")
        assert not one.fix or one.verdict != "ok"
    assert list(verb.lines(found, 80))[-1].count(",") < len(VERDICTS)


def test_lines_fit(tmp_path: Path) -> None:
    make("intel", tmp_path)
    trees.write(str(tmp_path), soundtrees.PARAMETERS.format("kvm_intel") + "ept", "N")
    trees.write(str(tmp_path), "/proc/swaps", "?")
    found = soundness.findings(read(tmp_path), PROGRAMS)
    for width in (40, 80, 100):
        shown = list(verb.lines(found, width))
        told = [line for line in shown if "options kvm_intel" not in line and "modprobe -r" not in line]
        assert max(map(len, told)) <= max(width, 64)
    assert shown[:6] == [
        "virtualisation",
        "  ok       CPU                 VT-x, Intel(R) Xeon(R) Gold 6338",
        "  ok       firmware            VT-x is on: KVM makes machines with it",
        "  ok       module              kvm_intel is loaded",
        "  fail     EPT                 switched off (ept=N) although the CPU has it: guests' page tables are",
        "                               shadowed in software, which is slow",
    ]
    assert shown[6:8] == [
        "           fix: echo 'options kvm_intel ept=1' >> /etc/modprobe.d/zz-kvmsup.conf",
        "                modprobe -r kvm_intel && modprobe kvm_intel  # while no guest runs",
    ]
    assert shown[-1].endswith(" ok, 1 fail, 1 unknown")
