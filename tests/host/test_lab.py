# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab itself: that the host which all other host tests trust is what they take it for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.errors import CommandFailed, CommandTimeout, LabPanic
from tests.lab.host import Host, Lab

_CREATE_VM = "import fcntl, os; print(fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xAE01, 0))"
_SIBLINGS = "cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list"
_SOCKETS = "cat /sys/devices/system/cpu/cpu*/topology/physical_package_id"


@pytest.fixture(scope="module")
def bare(still_lab: Lab) -> Iterator[Host]:
    """A host with nothing added; these tests are about the lab, not about kvmsup."""
    with still_lab.fresh() as host:
        yield host


def test_topology(bare: Host) -> None:
    assert bare.run(_SIBLINGS).stdout.split() == ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"]
    assert bare.run(_SOCKETS).stdout.split() == ["0", "0", "0", "0", "1", "1", "1", "1"]


def test_nodes_and_pages(bare: Host) -> None:
    assert bare.run("cat /sys/devices/system/node/node[01]/cpulist").stdout.split() == ["0-3", "4-7"]
    pools = bare.run("cat /sys/devices/system/node/node[01]/hugepages/hugepages-1048576kB/nr_hugepages").stdout
    assert sum(map(int, pools.split())) == 2


def test_systemd_is_the_host(bare: Host) -> None:
    assert bare.run("systemctl is-system-running").stdout == "running\n"
    assert bare.run("stat -fc %T /sys/fs/cgroup").stdout == "cgroup2fs\n"
    controllers = bare.read("/sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "cpuset", "memory", "io", "hugetlb", "pids"} <= set(controllers)


def test_kvm_creates_a_machine(bare: Host) -> None:
    assert int(bare.run(["python3", "-c", _CREATE_VM]).stdout) > 0


def test_qemu_with_kvm_starts(bare: Host) -> None:
    script = '{"execute":"qmp_capabilities"}{"execute":"query-kvm"}{"execute":"quit"}'
    command = "qemu-system-x86_64 -machine q35,accel=kvm -cpu host -S -nodefaults -display none -qmp stdio"
    assert '"enabled": true' in bare.run(command, stdin=script).stdout


def test_outputs_and_status(bare: Host) -> None:
    result = bare.run("cat; echo err >&2; exit 3", stdin="in\n", check=False)
    assert (result.rc, result.stdout, result.stderr) == (3, "in\n", "err\n")
    with pytest.raises(CommandFailed, match="exit status 3"):
        bare.run(["sh", "-c", "exit 3"])


def test_environment_is_a_root_shell(bare: Host) -> None:
    assert bare.run("echo $HOME $PWD $LANG $(id -u) $(umask)").stdout == "/root /root C.UTF-8 0 0022\n"
    assert "lab-agent" not in bare.run("env").stdout


def test_time_limit_kills_and_keeps_the_output(bare: Host) -> None:
    with pytest.raises(CommandTimeout) as caught:
        bare.run("echo before; sleep 4321; echo after", timeout=2)
    assert caught.value.stdout == "before\n"
    assert bare.run("pgrep -f 'sleep 432[1]'", check=False).rc == 1


def test_background_program_does_not_hold_the_reply(bare: Host) -> None:
    begin = time.monotonic()
    assert bare.run("sleep 100 & echo started").stdout == "started\n"
    assert time.monotonic() - begin < 30


def test_file_round_trip(bare: Host) -> None:
    data = os.urandom(3 << 20)
    bare.put(data, "/root/blob", 0o640)
    assert bare.get("/root/blob") == data
    assert bare.run("stat -c '%a %s' /root/blob").stdout == f"640 {len(data)}\n"
    bare.put(b"", "/root/blob")
    assert bare.get("/root/blob") == b""


def test_wait_for(bare: Host) -> None:
    bare.run("rm -f /tmp/flag; (sleep 1; echo yes > /tmp/flag) > /dev/null 2>&1 &")
    assert bare.wait_for("cat /tmp/flag", timeout=30).stdout == "yes\n"
    with pytest.raises(CommandTimeout, match="No such file"):
        bare.wait_for("cat /tmp/other", timeout=2)


def test_wait_for_line(bare: Host) -> None:
    """Lines that are there already count, and those that come meanwhile."""
    bare.run("logger -t lines one one; (sleep 2; logger -t lines one more) > /dev/null 2>&1 &")
    bare.wait_for_line("-t lines", "^one", times=2, timeout=30)
    with pytest.raises(CommandTimeout, match="one more"):
        bare.wait_for_line("-t lines", "^one", times=3, timeout=2)


def test_clock_is_this_machines(bare: Host) -> None:
    assert abs(float(bare.run("date +%s.%N").stdout) - time.time()) < 10


def test_restores_are_independent(lab: Lab) -> None:
    with lab.fresh() as one, lab.fresh() as two:
        one.run("echo mine > /root/mark; sync")
        assert two.run("test -e /root/mark", check=False).rc == 1
        assert one.read("/root/mark") == "mine\n"
    with lab.fresh() as three:
        assert three.run("test -e /root/mark", check=False).rc == 1


def test_snapshot_keeps_memory_and_disk(lab: Lab) -> None:
    with lab.fresh() as host:
        host.run("echo disk > /root/mark; echo memory > /run/mark")
        key = f"test-{os.getpid()}"
        lab.snapshot(host, key)
        host.run("echo later > /root/mark")
    try:
        with lab.fresh(key) as again:
            assert again.run("cat /root/mark /run/mark").stdout == "disk\nmemory\n"
    finally:
        lab.forget(key)


def test_panic_is_told_apart(lab: Lab) -> None:
    with lab.fresh() as host, pytest.raises(LabPanic):
        host.run("sleep 1; echo c > /proc/sysrq-trigger; sleep 60", timeout=90)


_ORPHAN = """
import sys, time
from tests.lab.host import Lab
with Lab().fresh() as host:
    print(host.machine.pid, flush=True)
    time.sleep(600)
"""


def test_qemu_ends_with_its_owner(lab: Lab) -> None:
    lab.ensure_built()
    owner = subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")
