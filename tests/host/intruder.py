# SPDX-License-Identifier: LGPL-2.1-or-later
"""What somebody might try who has taken QEMU over: `intruder.py REPORT PID SOCKET…`, run in QEMU's place, and by root.

Each attempt ends with "done" or the error's name. They go to REPORT as JSON, and in a unit the program then stays
until it is killed, which it makes as hard as it can. PID is another guest's QEMU; each SOCKET is connected to, as a
stream or as datagrams. Whatever an attempt does to the host when it may, it leaves as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import partial

LIBC = ctypes.CDLL(None, use_errno=True)
# asm/unistd_64.h: libc has no function for these.
_ADD_KEY, _BPF, _PERF_EVENT_OPEN, _INIT_MODULE, _USERFAULTFD, _PIDFD_GETFD = 248, 321, 298, 175, 323, 438
_PTRACE_SEIZE = 0x4206
FAMILIES = {
    "INET": (socket.AF_INET, socket.SOCK_DGRAM),
    "INET6": (socket.AF_INET6, socket.SOCK_DGRAM),
    "NETLINK": (socket.AF_NETLINK, socket.SOCK_RAW),
    "PACKET": (socket.AF_PACKET, socket.SOCK_RAW),
    "VSOCK": (socket.AF_VSOCK, socket.SOCK_STREAM),
    "ALG": (socket.AF_ALG, socket.SOCK_SEQPACKET),
}
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000


class IoVector(ctypes.Structure):
    """struct iovec of process_vm_readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def checked(result: int) -> int:
    """`result` of a C function; raises OSError for what is less than 0."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def look(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def scribble(path: str) -> None:
    """Open it to write, and write nothing; a new file is removed again."""
    there = os.path.lexists(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if not there:
        os.unlink(path)


def connect(path: str) -> None:
    """As whatever it is: a file does not say."""
    address = path.replace("@", "\0", 1) if path.startswith("@") else path
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as one:
            one.settimeout(5)
            try:
                one.connect(address)
            except OSError as error:
                if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_DGRAM:
                    raise
            else:
                return


def family(number: int, kind: int) -> None:
    socket.socket(number, kind).close()


def bind() -> None:
    """Take a port of the host's."""
    with socket.socket(socket.AF_INET) as listener:
        listener.bind(("0.0.0.0", 0))


def memory_of(pid: int) -> None:
    with open(f"/proc/{pid}/maps") as maps:
        start = int(maps.readline().partition("-")[0], 16)
    peek(pid, start)


def peek(pid: int, address: int) -> None:
    here = ctypes.create_string_buffer(8)
    ours = IoVector(ctypes.cast(here, ctypes.c_void_p), 8)
    theirs = IoVector(address, 8)
    checked(LIBC.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))


def trace(pid: int) -> None:
    """Not stopped by it, and free again when the child ends."""
    in_child(lambda: checked(LIBC.ptrace(_PTRACE_SEIZE, pid, 0, 0)))


def descriptor_of(pid: int) -> None:
    os.close(checked(LIBC.syscall(_PIDFD_GETFD, os.pidfd_open(pid), 0, 0)))


def in_child(attempt: Callable[[], object]) -> None:
    """`attempt` in a process that ends with it. Raises the OSError that it ended with."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))


def become(user: int) -> None:
    in_child(lambda: os.setresuid(user, user, user))


def capability() -> None:
    """CAP_SYS_ADMIN, effective and permitted (capset(2), version 3)."""
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 0, 0, 0, 0)
    in_child(lambda: checked(LIBC.capset(head, data)))


def setuid_program(path: str) -> None:
    """A copy of test(1) that is root's and has the set-user-ID bit: whether it may read what root may."""
    in_child(lambda: os.execv(path, ["test", "-r", "/etc/shadow"]))


def privileged_node() -> None:
    path = f"/tmp/node.{os.getpid()}"
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(254, 0))
    os.unlink(path)


def mount() -> None:
    checked(LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None))
    checked(LIBC.umount2(b"/mnt", 0))


def namespace(flag: int) -> None:
    in_child(lambda: checked(LIBC.unshare(flag)))


def key() -> None:
    checked(LIBC.syscall(_ADD_KEY, b"user", b"intruder", b"x", 1, -3))


def program_for_the_kernel() -> None:
    """An array map (bpf(2)): type 2, keys and values of 4 bytes, one of them."""
    attributes = (ctypes.c_uint32 * 16)(2, 4, 4, 1)
    os.close(checked(LIBC.syscall(_BPF, 0, attributes, ctypes.sizeof(attributes))))


def counters() -> None:
    """CPU cycles of the whole of CPU 0 (perf_event_open(2)): a software clock will do."""
    attributes = (ctypes.c_uint32 * 28)(1, 112)
    os.close(checked(LIBC.syscall(_PERF_EVENT_OPEN, attributes, -1, 0, -1, 0)))


def module() -> None:
    """An image that is none: who may load modules is told so (ENOEXEC), which is as good as done."""
    try:
        checked(LIBC.syscall(_INIT_MODULE, b"x", 1, b""))
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise


def real_time() -> None:
    in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))


def clock() -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))


def writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def attempts(pid: int, sockets: list[str]) -> dict[str, Callable[[], object]]:
    """By name: what is tried of the host, and of the guest `other` whose QEMU is `pid`."""
    files = {
        "another guest's own disk": "/var/lib/kvmsup/other/own.img",
        "another guest's disk by its real path": "/var/lib/private/kvmsup/other/own.img",
        "another guest's plugged disk": "/srv/plugged.img",
        "an image that others may read": "/var/lib/images/open.img",
        "another guest's log": "/run/kvmsup/guests/other/ended",
        "another guest's claim": "/run/kvmsup/claims/other.env",
        "what another guest runs with": "/run/kvmsup/running/other.json",
        "another guest's TOML": "/etc/kvmsup/other.toml",
        "its own TOML": "/etc/kvmsup/probe.toml",
        "the host's file": "/etc/kvmsup.toml",
        "passwords": "/etc/shadow",
        "the host's disk": "/dev/vda",
        "the host's memory": "/dev/mem",
        "the kernel's log": "/dev/kmsg",
        "the means to make a tap": "/dev/net/tun",
        "another guest's memory": f"/proc/{pid}/mem",
        "another guest's command line": f"/proc/{pid}/cmdline",
        "a descriptor of another guest": f"/proc/{pid}/root/etc/hostname",
        "the kernel's symbols": "/proc/kallsyms",
    }
    written = {
        "the lock over all claims": "/run/kvmsup/lock",
        "a claim": "/run/kvmsup/claims/intruder.env",
        "a unit": "/run/systemd/system/intruder.service",
        "a guest": "/etc/kvmsup/intruder.toml",
        "a setting of the kernel": "/proc/sys/kernel/hostname",
        "KSM": "/sys/kernel/mm/ksm/run",
        "a pool of pages": "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        "a control group": "/sys/fs/cgroup/kvm.slice/cgroup.procs",
        "its own, which is delegated": "/sys/fs/cgroup/kvm.slice/kvm-dedicated.slice/kvm@probe.service/cgroup.procs",
        "memory that all share": "/dev/shm/intruder",
        "a program": "/usr/local/bin/intruder",
    }
    found: dict[str, Callable[[], object]] = {f"read {name}": partial(look, path) for name, path in files.items()}
    found |= {f"write {name}": partial(scribble, path) for name, path in written.items()}
    found |= {f"connect to {path}": partial(connect, path) for path in sockets}
    found |= {f"a socket of AF_{name}": partial(family, *numbers) for name, numbers in FAMILIES.items()}
    return found | {
        "peek into another guest": lambda: memory_of(pid),
        "peek by a system call": lambda: peek(pid, 0x1000),
        "trace another guest": lambda: trace(pid),
        "take a descriptor": lambda: descriptor_of(pid),
        "signal another guest": lambda: os.kill(pid, 0),
        "gain a capability": capability,
        "become root": lambda: become(0),
        "become somebody": lambda: become(1),
        "use a set-user-ID program": lambda: setuid_program("/usr/local/bin/as-root"),
        "make a device": privileged_node,
        "mount": mount,
        "a user namespace": lambda: namespace(_CLONE_NEWUSER),
        "a mount namespace": lambda: namespace(_CLONE_NEWNS),
        "a key": key,
        "bpf": program_for_the_kernel,
        "performance counters": counters,
        "a kernel module": module,
        "handle page faults": lambda: os.close(checked(LIBC.syscall(_USERFAULTFD, 0))),
        "real time": real_time,
        "the clock": clock,
        "a name for the host": lambda: socket.sethostname(socket.gethostname()),
        "writable code": writable_code,
        "take a port": bind,
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def main(report: str, pid: int, sockets: list[str]) -> None:
    found = {name: outcome(attempt) for name, attempt in attempts(pid, sockets).items()}
    with open(f"{report}.part", "w") as file:
        json.dump(found, file)
    os.rename(f"{report}.part", report)


def stay() -> None:
    """Hear no signal, and have systemd put off its own, for as long as it lets us (sd_notify(3))."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        while True:
            with contextlib.suppress(OSError):
                notify.sendto(b"EXTEND_TIMEOUT_USEC=600000000", "/run/systemd/notify")
            time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    if "KVMSUP_UNIT" in os.environ:
        stay()
