# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole hosts made of files, as `kvmsup host` reads them.

They are written by hand after the kernel's documentation and sources, not captured: the lab is AMD, so nothing of
Intel's is ever seen live here.
"""

from __future__ import annotations

import os

from tests.unit import trees

PARAMETERS = "/sys/module/{}/parameters/"
_X86 = "fpu vme tsc msr pae cx8 apic sep constant_tsc nonstop_tsc"
_INTEL_BUGS = {
    "itlb_multihit": "KVM: Mitigation: Split huge pages",
    "l1tf": "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT disabled",
    "mds": "Mitigation: Clear CPU buffers; SMT disabled",
    "spectre_v2": "Mitigation: Enhanced / Automatic IBRS",
}


def cpuinfo(vendor: str, model: str, flags: str, vmx: str = "") -> str:
    """Two CPUs of /proc/cpuinfo; the second shows nothing, so that reading it would be seen."""
    more = f"vmx flags\t: {vmx}\n" if vmx else ""
    first = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: {model}\nflags\t\t: {_X86} {flags}\n{more}"
    return f"{first}bugs\t\t:\n\nprocessor\t: 1\nflags\t\t: none\n"


def intel(root: str) -> dict[str, str]:
    """A server with two nodes, four cores of one thread, a loaded kvm_intel: all as it should be."""
    vmx = "vnmi preemption_timer ept_ad flexpriority ept vpid unrestricted_guest ple pml"
    files = _common() | {
        "/proc/cpuinfo": cpuinfo("GenuineIntel", "Intel(R) Xeon(R) Gold 6338", "vmx ept vpid pdpe1gb", vmx),
        "/sys/class/iommu/dmar0/name": "",
        "/sys/firmware/acpi/tables/DMAR": "",
    }
    switches = {"ept": "Y", "vpid": "Y", "unrestricted_guest": "Y", "nested": "Y", "ple_gap": "128"}
    files |= {PARAMETERS.format("kvm_intel") + name: value for name, value in switches.items()}
    files |= {f"/sys/devices/system/cpu/vulnerabilities/{name}": text for name, text in _INTEL_BUGS.items()}
    return write(root, files | {PARAMETERS.format("kvm") + "nx_huge_pages": "Y"})


def amd(root: str) -> dict[str, str]:
    """The same with kvm_amd."""
    files = _common() | {
        "/proc/cpuinfo": cpuinfo("AuthenticAMD", "AMD EPYC 7543", "svm npt pausefilter pfthreshold pdpe1gb"),
        "/sys/class/iommu/ivhd0/name": "",
        "/sys/firmware/acpi/tables/IVRS": "",
        "/sys/devices/system/cpu/vulnerabilities/itlb_multihit": "Not affected",
        "/sys/devices/system/cpu/vulnerabilities/vmscape": "Mitigation: IBPB before exit to userspace",
    }
    switches = {"npt": "Y", "nested": "1", "pause_filter_count": "3000", "pause_filter_thresh": "128"}
    return write(root, files | {PARAMETERS.format("kvm_amd") + name: value for name, value in switches.items()})


def arm(root: str) -> dict[str, str]:
    """An aarch64 server, whose /proc/cpuinfo has no flags line."""
    files = {path: text for path, text in _common().items() if "smt" not in path and "nx_huge" not in path}
    told = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
    return write(root, files | {"/proc/cpuinfo": told, "/proc/sys/kernel/arch": "aarch64"})


def write(root: str, files: dict[str, str]) -> dict[str, str]:
    """Write them, and hand them back."""
    for path, text in files.items():
        trees.write(root, path, text)
    return files


def _common() -> dict[str, str]:
    cpu, memory = "/sys/devices/system/cpu", "/sys/kernel/mm"
    files = {
        "/dev/kvm": "",
        "/dev/kmsg": "6,1,1,-;Linux version",
        "/etc/group": f"root:x:0:\nkvm:x:{os.getgid()}:\nbroken\n",
        "/proc/1/stat": trees.stat("systemd", 0),
        "/proc/1/task/1/stat": trees.stat("systemd", 0),
        "/proc/cmdline": "root=/dev/sda1 ro quiet",
        "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/sda 2 partition 8388604 1024 -2",
        "/proc/sys/kernel/arch": "x86_64",
        "/proc/sys/kernel/numa_balancing": "1",
        "/proc/sys/kernel/osrelease": "6.12.38+deb13-amd64",
        "/run/systemd/system/.there": "",
        "/sys/class/dmi/id/sys_vendor": "Example",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids",
        f"{PARAMETERS.format('kvm')}halt_poll_ns": "200000",
        f"{PARAMETERS.format('kvm')}nx_huge_pages": "N",
        f"{cpu}/isolated": "",
        f"{cpu}/nohz_full": "(null)",
        f"{cpu}/online": "0-3",
        f"{cpu}/present": "0-3",
        f"{cpu}/smt/control": "off",
        f"{cpu}/vulnerabilities/meltdown": "Not affected",
        f"{memory}/ksm/run": "0",
        f"{memory}/transparent_hugepage/enabled": "always [madvise] never",
    }
    for number in range(4):
        files |= {
            f"{cpu}/cpu{number}/topology/thread_siblings_list": f"{number}",
            f"{cpu}/cpu{number}/topology/physical_package_id": "0",
        }
    return files | _nodes()


def _nodes() -> dict[str, str]:
    node = "/sys/devices/system/node"
    files = {f"{node}/online": "0-1"}
    for number in range(2):
        files |= {
            f"{node}/node{number}/cpulist": f"{number * 2}-{number * 2 + 1}",
            f"{node}/node{number}/meminfo": f"Node {number} MemTotal: 4 kB",
        }
        for size, total in ((2048, 512 * number), (1048576, 0)):
            pool = f"{node}/node{number}/hugepages/hugepages-{size}kB"
            files |= {f"{pool}/nr_hugepages": f"{total}", f"{pool}/free_hugepages": f"{total // 2}"}
            files[f"{pool}/surplus_hugepages"] = "0"
    return files
