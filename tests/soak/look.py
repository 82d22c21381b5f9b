# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program inside the host: prints, as JSON, what is so at one moment, and while nobody else is at the claims.

look.py           once, to standard output
look.py SECONDS   again and again for so long, a line each

It reads claims, the kernel's files and systemd's word, and shares no code with kvmsup: what both got wrong, nobody
would see. Stands alone: it is copied into the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
RUN = "/run/kvmsup"
SLICES = "/sys/fs/cgroup/kvm.slice"
_PAUSE_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 240.0


def read(path: str) -> str:
    """The text of a file, "" where there is none (any more)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def holder() -> int:
    """The process that took the claims' lock (/proc/locks, proc(5)); 0 where it is free."""
    try:
        inode = str(os.stat(f"{RUN}/lock").st_ino)
    except FileNotFoundError:
        return 0
    for line in read("/proc/locks").splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return int(words[4])
    return 0


def dead_holder() -> int:
    """The pid of who has the lock and is dead; 0 where nobody has. Looked at twice: it may end just now."""
    for _ in range(2):
        pid = holder()
        if pid == 0 or re.search(r"^State:\s+[^ZX]", read(f"/proc/{pid}/status"), re.MULTILINE):
            return 0
        time.sleep(0.2)
    return pid


@contextlib.contextmanager
def locked() -> Iterator[float]:
    """The claims' lock, and for how long it was waited for; -1.0 when it could not be had."""
    began = time.monotonic()
    descriptor = os.open(f"{RUN}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield time.monotonic() - began
                return
            except BlockingIOError:
                if time.monotonic() - began > _LONGEST_WAIT_SECONDS:
                    yield -1.0
                    return
            time.sleep(0.02)
    finally:
        os.close(descriptor)


def units() -> dict[str, str]:
    """ActiveState of every guest's units."""
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "kvm@*", "kvm-setup@*"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return {words[0]: words[2] for words in map(str.split, lines) if len(words) > 3}


def processes() -> dict[int, Json]:
    """Every QEMU of a guest: its slice and guest, by pid."""
    found = {}
    units = f"{SLICES}/*/kvm@*.service"
    for path in glob.glob(f"{units}/cgroup.procs") + glob.glob(f"{units}/qemu/cgroup.procs"):
        within, unit = path.split("/")[5:7]
        for pid in map(int, read(path).split()):
            if "qemu-system" in read(f"/proc/{pid}/cmdline").partition("\0")[0]:
                guest = unit.removeprefix("kvm@").removesuffix(".service")
                found[pid] = {"slice": within, "guest": guest, "active": False}
    return found


def threads(pid: int) -> list[list[str]]:
    """Name and Cpus_allowed_list of each thread; none of a process that has ended."""
    found = []
    for task in glob.glob(f"/proc/{pid}/task/[0-9]*"):
        allowed = re.search(r"^Cpus_allowed_list:\s+(\S+)$", read(f"{task}/status"), re.MULTILINE)
        if allowed:
            found.append([read(f"{task}/comm").strip(), allowed[1]])
    return found


def hugepages(pid: int) -> dict[str, int]:
    """Pages of 2M that the process has, by node (numa_maps: lines with huge and N0=16 kernelpagesize_kB=2048)."""
    found: dict[str, int] = {}
    for line in read(f"/proc/{pid}/numa_maps").splitlines():
        if "kernelpagesize_kB=2048" in line:
            for node, count in re.findall(r" N(\d+)=(\d+)", line):
                found[node] = found.get(node, 0) + int(count)
    return found


def pools() -> dict[str, dict[str, int]]:
    """The pools of 2M pages by node."""
    found = {}
    for node in sorted(glob.glob("/sys/devices/system/node/node[0-9]*")):
        place = f"{node}/hugepages/hugepages-2048kB"
        names = ("nr_hugepages", "free_hugepages", "surplus_hugepages")
        found[node.rpartition("node")[2]] = {name: int(read(f"{place}/{name}") or -1) for name in names}
    return found


def claims() -> dict[str, dict[str, str]]:
    found = {}
    for path in glob.glob(f"{RUN}/claims/*.env"):
        pairs = (line.split("=", 1) for line in read(path).splitlines() if "=" in line)
        found[os.path.basename(path).removesuffix(".env")] = {k.removeprefix("KVMSUP_"): v for k, v in pairs}
    return found


def links() -> dict[str, dict[str, str]]:
    """The guests' interfaces on the host, by name: the guest that kvmsup wrote down, and the bridge."""
    found = {}
    for path in glob.glob("/sys/class/net/*"):
        alias = read(f"{path}/ifalias").strip()
        if alias.startswith("kvm@"):
            master = os.path.basename(os.path.realpath(f"{path}/master")) if os.path.exists(f"{path}/master") else ""
            found[os.path.basename(path)] = {"alias": alias, "master": master}
    return found


def ksm() -> dict[str, str]:
    place = "/sys/kernel/mm/ksm"
    names = ("run", "pages_to_scan", "sleep_millisecs", "use_zero_pages", "smart_scan", "advisor_mode")
    return {name: read(f"{place}/{name}").strip() for name in names}


def fence() -> str:
    """The value of AllowedCPUs= that systemd keeps for shared guests; "" where there is none."""
    text = read("/run/systemd/system.control/kvm-shared.slice.d/50-AllowedCPUs.conf")
    values = [line.partition("=")[2].strip() for line in text.splitlines() if line.startswith("AllowedCPUs=")]
    return values[-1] if values else ""


def left() -> dict[str, list[str]]:
    """What guests may leave behind beside their claims."""
    return {
        "running": sorted(os.listdir(f"{RUN}/running")),
        "ready": sorted(os.listdir(f"{RUN}/ready")),
        "guests": sorted(os.listdir(f"{RUN}/guests")),
        "macvtaps": sorted(glob.glob("/dev/tap[0-9]*")),
        "control": sorted(glob.glob("/run/systemd/system.control/*/*")),
        "isolated": glob.glob(f"{RUN}/isolated/*") + glob.glob(f"{RUN}/masks.found"),
        "ksm.found": glob.glob(f"{RUN}/ksm.found"),
    }


def look() -> Json:
    """What is so now. Claims, pools, slices and threads are of one moment; who was active is from just before."""
    seen: Json = {"at": time.monotonic(), "dead_holder": dead_holder()}
    before = processes()
    states = units()
    with locked() as waited:
        # systemd writes to control groups after it has answered who asked for that, and before it answers the next.
        subprocess.run(["systemctl", "show", "-P", "Version"], capture_output=True, check=False)
        now = processes()
        known = claims()
        for pid, one in now.items():
            # The same QEMU as before, whose attach was over then.
            one["active"] = pid in before and states.get(f"kvm@{one['guest']}.service") == "active"
            one["threads"] = threads(pid)
            one["pages"] = hugepages(pid) if known.get(one["guest"], {}).get("PAGES") else {}
        alive = processes()
        seen |= {
            "waited": waited,
            "units": states,
            "claims": known,
            "qemus": {str(pid): one for pid, one in now.items() if pid in alive},
            "pools": pools(),
            "links": links(),
            "fence": fence(),
            "effective": read(f"{SLICES}/kvm-shared.slice/cpuset.cpus.effective").strip(),
            "present": read("/sys/devices/system/cpu/present").strip(),
        }
    return seen | {"ksm": ksm(), "left": left(), "ksm_again": ksm()}


def main() -> None:
    if len(sys.argv) == 1:
        print(json.dumps(look()))
        return
    until = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < until:
        print(json.dumps(look()), flush=True)
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
