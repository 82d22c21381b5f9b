# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hugepages on a real kernel: never promised twice, filled by the right CPUs, told when they are short."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import guests
from tests.lab import still
from tests.lab.host import Host

MANY = [f"many{number}" for number in range(20)]
# Shared CPUs, so that only the pages are scarce.
SMALL = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[placement]
nodes = "0"
[memory]
size = "96M"
hugepages = "2M"
"""
EACH = 48
# Hugepages of a guest that needs most of what is free on a node in disorder.
BIG = 500

# Looks at claims and pool under the claims' lock until it is stopped, and writes down every distinct look.
WATCH = """
import json, sys, time
sys.path.insert(0, "/usr/lib/kvmsup")
from kvmsup.effects import claims, hugepages
seen = set()
while True:
    with claims.lock(""):
        known = claims.read_all("").values()
        pool = hugepages.pool("", 0, 2 << 20)
        look = (pool.total, sum(claim.pages[0] for claim in known if claim.held), pool.surplus)
    if look not in seen:
        seen.add(look)
        with open("/tmp/looks", "a") as file:
            print(json.dumps(look), file=file)
    time.sleep(0.05)
"""

TRACE = "/sys/kernel/tracing"
POOL = "/sys/devices/system/node/node{node}/hugepages/hugepages-{kilobytes}kB/{kind}_hugepages"


@pytest.fixture(autouse=True, scope="module")
def supervisor(host: Host) -> None:
    guests.keep_supervisor(host)


@pytest.fixture(autouse=True)
def as_found(host: Host) -> Iterator[None]:
    """The pools are the same before and after each test, and nothing is left; nothing that failed fails the next."""
    before = host.run("grep . /sys/devices/system/node/node*/hugepages/*/*_hugepages").stdout
    yield
    host.run("systemctl stop hog watch", check=False)
    host.wait_for("! systemctl is-active -q hog")
    after = host.run("grep . /sys/devices/system/node/node*/hugepages/*/*_hugepages").stdout
    left = [line for line in guests.leftovers(host) if "kvm-setup@" in line or "claims" in line]
    if after != before or left:
        guests.clear(host)
        pools = (line.split(":") for line in before.splitlines() if "/nr_hugepages:" in line)
        host.run("\n".join(f"echo {count} > {file}" for file, count in pools))
    assert after == before
    assert left == []


def hog(host: Host, kind: str, number: int) -> int:
    """Run hog.py; returns its pid once it has taken what it should."""
    host.put(Path(__file__).with_name("hog.py"), "/root/hog.py")
    host.run("rm -f /tmp/hog")
    service = f"systemd-run --quiet --unit hog -p StandardOutput=file:/tmp/hog python3 /root/hog.py {kind} {number}"
    host.run(f"systemctl reset-failed hog 2>/dev/null; {service}")
    host.wait_for("grep -q ready /tmp/hog || systemctl is-failed -q hog", timeout=240)
    return int(guests.show(host, "hog", "MainPID")["MainPID"])


def pool(host: Host, node: int, kind: str = "nr", kilobytes: int = 2048) -> int:
    return int(host.read(POOL.format(node=node, kilobytes=kilobytes, kind=kind)))


def test_twenty_at_once_are_never_promised_more_than_there_is(host: Host) -> None:
    """Somebody else has most of node 0; as many guests run as fit, and the others are told who has the pages."""
    free = int(host.run("awk '/MemFree/{print $4}' /sys/devices/system/node/node0/meminfo").stdout) >> 11
    taken = free - 3 * EACH
    host.run(f"echo {taken} > {POOL.format(node=0, kilobytes=2048, kind='nr')}", timeout=60)
    holder = hog(host, "pages", taken)
    host.put(SMALL.encode(), "/root/many.toml")
    host.run(f"for name in {' '.join(MANY)}; do cp /root/many.toml /etc/kvmsup/$name.toml; done")
    guests.configure(host, {})
    for unit in ("kvm-setup@.service", "kvm@.service"):
        guests.be_patient_with(host, unit)
    host.put(WATCH.encode(), "/root/watch.py")
    host.run("rm -f /tmp/looks; systemd-run --quiet --unit watch python3 /root/watch.py")
    host.run(f"systemctl start {' '.join(f'kvm@{name}' for name in MANY)}", check=False, timeout=500)
    shown = host.run(f"systemctl is-active {' '.join(f'kvm@{name}' for name in MANY)}", check=False).stdout.split()
    assert set(shown) == {"active", "inactive"}
    up = [name for name, state in zip(MANY, shown, strict=True) if state == "active"]
    assert pool(host, 0, "free") == 0 and pool(host, 0) == taken + EACH * len(up)
    looks = [json.loads(line) for line in host.read("/tmp/looks").splitlines()]
    assert len(looks) > len(up)
    for total, promised, surplus in looks:
        assert taken + promised <= total and surplus == 0
    told = host.run("journalctl --sync; journalctl --boot --no-pager --output=cat -u 'kvm@many*'").stdout
    refused = re.findall(rf"node 0 is short of \d+ hugepages of 2M: {EACH} needed, .*", told)
    assert len(refused) == len(MANY) - len(up)
    assert all(f"other processes: python3 (pid {holder}) {taken}" in one for one in refused)
    last = next(name for name in reversed(MANY) if name not in up)
    assert guests.start(host, last, check=False).rc == 1
    assert all(f"{name} {EACH}" in guests.said(host, last) for name in up)
    host.run("systemctl stop watch")
    host.run(f"systemctl kill -s KILL {' '.join(f'kvm@{name}' for name in up)}")
    host.wait_for(f"[ $(cat {POOL.format(node=0, kilobytes=2048, kind='nr')}) = {taken} ]", timeout=90)
    for name in up:
        guests.released(host, name)
    host.run("systemctl reset-failed 'kvm@*' 'kvm-setup@*'; rm /etc/kvmsup/many*; systemctl daemon-reload")
    host.run("systemctl stop hog")
    host.run(f"echo 0 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")


def test_the_guests_own_cpus_fill_its_pages_on_its_node(host: Host) -> None:
    """Locked as well, and with pages to be had on the node where QEMU itself runs: none of them is touched."""
    text = guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "1"\nemulator = "0"') + "lock = true\n"
    guests.configure(host, {"tiny": text.replace("64M", "256M")})
    host.run(f"echo 64 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")
    event = f"{TRACE}/events/sched/sched_switch"
    host.run(f"echo > {TRACE}/trace; echo 'next_comm == \"touch_pages\"' > {event}/filter; echo 1 > {event}/enable")
    guests.start(host, "tiny")
    host.run(f"echo 0 > {event}/enable; echo 0 > {event}/filter")
    ran = host.run(f"grep touch_pages {TRACE}/trace | grep -o '\\[[0-9]*\\]' | sort -u").stdout.split()
    own = guests.claim(host, "tiny")["VCPU_CPUS"].split()
    # A thread may be done before the other one's CPU has woken up for it, and takes it over.
    assert ran and set(ran) <= {f"[{int(cpu):03}]" for cpu in own}
    assert guests.claim(host, "tiny")["FILL_0"].replace("-", ",") in (",".join(own), "-".join(own))
    maps = host.run(f"grep kernelpagesize_kB=2048 /proc/{guests.pid(host, 'tiny')}/numa_maps").stdout
    assert re.findall(r" N(\d+)=(\d+)", maps) == [("1", "128")]
    assert (pool(host, 0), pool(host, 0, "free")) == (64, 64)
    assert guests.kvmsup(host, "verify")["ok"]
    assert guests.kvmsup(host, "status tiny")["memory"][0]["held"] == 128
    # Whatever QEMU used for that has gone, or is with its other threads.
    assert {cpus for name, cpus in guests.allowed(host, guests.pid(host, "tiny")).items() if "CPU" not in name} == {
        "0"
    }
    guests.kill(host, "tiny")
    assert (pool(host, 0), pool(host, 1)) == (64, 0)
    host.run(f"echo 0 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")


def test_ordinary_memory_is_locked_bound_and_told_when_it_has_gone_astray(host: Host) -> None:
    text = guests.SHARED.replace("[memory]", '[placement]\nnodes = "1"\n[memory]\nlock = true')
    guests.configure(host, {"tiny": text})
    guests.start(host, "tiny")
    process = guests.pid(host, "tiny")
    locked = int(host.run(f"awk '/VmLck/{{print $2}}' /proc/{process}/status").stdout)
    assert locked >= 64 << 10
    (resident,) = guests.kvmsup(host, "status tiny")["resident"]
    assert resident == {"node": 1, "page_size": 4096, "size": 64 << 20, "astray": 0}
    assert "memory     node 1: 64M touched, in pages of 4K" in host.run("kvmsup status tiny").stdout
    assert guests.kvmsup(host, "verify")["ok"]
    # migrate_pages(2): all that is on node 1 goes to node 0.
    script = "import ctypes; m = ctypes.c_ulong; print(ctypes.CDLL(None).syscall(256, {}, 64, {}, {}))"
    masks = ("ctypes.byref(m(2))", "ctypes.byref(m(1))")
    host.run(["python3", "-c", script.format(process, *masks)], timeout=60)
    told = guests.kvmsup(host, "verify", check=False)
    assert [(one["guest"], one["what"], one["wanted"]) for one in told["differences"]] == [
        ("tiny", "memory on node 0, bound to node 1", "none")
    ]
    status = guests.kvmsup(host, "status tiny", check=False)
    assert status["drift"] and status["resident"][0]["astray"] > 32 << 20
    guests.kill(host, "tiny")


def test_pages_of_1g_from_boot(host: Host) -> None:
    """The host has two of them on node 1 since boot: one is used, none added, and none taken away."""
    big = guests.TINY.replace("64M", "1G").replace('"2M"', '"1G"').replace('"dedicated"', '"dedicated"\nnodes = "1"')
    guests.configure(host, {"big": big})
    assert pool(host, 1, "free", 1 << 20) == 2
    guests.start(host, "big")
    assert guests.claim(host, "big")["PAGES_GROWN"] == "1=0"
    assert (pool(host, 1, "nr", 1 << 20), pool(host, 1, "free", 1 << 20)) == (2, 1)
    (entry,) = guests.kvmsup(host, "status big")["memory"]
    assert (entry["held"], entry["pool"], entry["free"]) == (1, 2, 1)
    guests.kill(host, "big")
    assert (pool(host, 1, "nr", 1 << 20), pool(host, 1, "free", 1 << 20)) == (2, 2)


def test_pages_that_others_have_beyond_the_pool_are_so_again(host: Host) -> None:
    """Growing a pool makes its own what somebody has overcommitted; afterwards it goes with its user, as before."""
    host.run("echo 20 > /proc/sys/vm/nr_overcommit_hugepages")
    hog(host, "pages", 20)
    assert (pool(host, 0), pool(host, 0, "surplus")) == (20, 20)
    guests.configure(host, {"tiny": guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "0"')})
    guests.start(host, "tiny")
    assert (pool(host, 0), pool(host, 0, "surplus"), pool(host, 0, "free")) == (52, 0, 0)
    guests.kill(host, "tiny")
    assert (pool(host, 0), pool(host, 0, "surplus")) == (20, 20)
    host.run("systemctl stop hog; echo 0 > /proc/sys/vm/nr_overcommit_hugepages")
    host.wait_for(f"[ $(cat {POOL.format(node=0, kilobytes=2048, kind='nr')}) = 0 ]", timeout=30)


def test_pages_that_somebody_has_mapped_and_not_touched_are_left_to_them(host: Host) -> None:
    host.run(f"echo 40 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")
    hog(host, "mapped", 30)
    assert pool(host, 0, "free") == 40
    guests.configure(host, {"tiny": guests.TINY.replace('"dedicated"', '"dedicated"\nnodes = "0"')})
    guests.start(host, "tiny")
    assert guests.claim(host, "tiny")["PAGES_GROWN"] == "0=22"
    assert (pool(host, 0), pool(host, 0, "free")) == (62, 30)
    guests.kill(host, "tiny")
    assert (pool(host, 0), pool(host, 0, "free")) == (40, 40)
    host.run(f"systemctl stop hog; echo 0 > {POOL.format(node=0, kilobytes=2048, kind='nr')}")


def blocks(host: Host, node: int) -> int:
    """How many hugepages of 2M the free memory of `node` is good for as it lies (/proc/buddyinfo: orders 9 and 10)."""
    script = f"awk '/^Node {node},/{{sum += $14 + 2 * $15}} END{{print sum + 0}}' /proc/buddyinfo"
    return int(host.run(script).stdout)


def test_a_node_in_disorder_is_put_in_order(host: Host) -> None:
    """Half of every 2M is somebody's, who can be moved: what is missing comes from compacting memory."""
    hog(host, "movable", 200)
    host.run("sync; echo 3 > /proc/sys/vm/drop_caches", timeout=60)
    assert blocks(host, 0) < BIG
    guests.configure(host, {"orderly": SMALL.replace("96M", f"{2 * BIG}M")})
    guests.start(host, "orderly")
    assert pool(host, 0) == BIG
    maps = host.run(f"grep kernelpagesize_kB=2048 /proc/{guests.pid(host, 'orderly')}/numa_maps").stdout
    assert re.findall(r" N(\d+)=(\d+)", maps) == [("0", str(BIG))]
    guests.kill(host, "orderly")
    assert pool(host, 0) == 0


def test_a_node_that_cannot_be_put_in_order_is_told_and_left_as_it_was(host: Host) -> None:
    """There is memory enough, but in each 64K of it a page that the kernel cannot move."""
    hog(host, "unmovable", 100)
    host.run("sync; echo 3 > /proc/sys/vm/drop_caches", timeout=60)
    big = guests.TINY.replace("64M", "1G").replace('"2M"', '"1G"').replace('"dedicated"', '"dedicated"\nnodes = "0"')
    guests.configure(host, {"more": big, "broken": SMALL.replace("96M", f"{2 * BIG}M")})
    assert guests.start(host, "broken", check=False).rc == 1
    guests.released(host, "broken")
    said = guests.said(host, "broken")
    assert f"hugepages of 2M: {BIG} needed, {BIG} to be added to a pool of 0 with 0 free," in said
    assert pool(host, 0) == 0
    assert guests.start(host, "more", check=False).rc == 1
    guests.released(host, "more")
    said = guests.said(host, "more")
    assert "node 0 is short of 1 hugepages of 1G: 1 needed, 1 to be added to a pool of 0 with 0 free, 0 came" in said
    assert "on the kernel command line: hugepagesz=1G hugepages=0:1,1:2\n" in said
