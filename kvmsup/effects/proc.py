# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes: what the kernel tells of them and of memory in /proc (proc(5)), and signals to them."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from kvmsup.effects import files
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import signal

# include/linux/sched.h
_PF_KTHREAD, _PF_NO_SETAFFINITY = 0x00200000, 0x04000000


class Stat(NamedTuple):
    """`bound`: the kernel does not let anybody move it. `cpu_seconds` are those it has run for."""

    name: str
    kernel: bool
    bound: bool
    last_cpu: int
    cpu_seconds: float


def stat(directory: str) -> Stat | None:
    """Fields 2, 9, 14, 15 and 39 of `directory`/stat, a thread's below /proc; None when it has ended.

    The name is for people: any thread may change its own, to any 15 bytes, spaces and parentheses among them.
    """
    try:
        head, _, tail = files.read(f"{directory}/stat").rpartition(")")
        fields = tail.split()  # the first is field 3
        flags, last_cpu = int(fields[9 - 3]), int(fields[39 - 3])
        ticks = int(fields[14 - 3]) + int(fields[15 - 3])  # in user mode and in the kernel
    except (OSError, IndexError, ValueError):
        return None
    name = files.printable(head.partition("(")[2])
    seconds = ticks / os.sysconf("SC_CLK_TCK")
    return Stat(name, bool(flags & _PF_KTHREAD), bool(flags & _PF_NO_SETAFFINITY), last_cpu, seconds)


def environment(directory: str) -> dict[str, str]:
    """What the process of `directory`, below /proc, was started with; nothing if it ended. It may have changed it."""
    try:
        text = files.read(f"{directory}/environ")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)


def allowed(directory: str) -> frozenset[int]:
    """The CPUs that the thread of `directory`, below /proc, may run on; none when it has ended."""
    from kvmsup import cpulist  # who stops a guest has no need of it

    try:
        for line in files.read(f"{directory}/status").splitlines():
            if line.startswith("Cpus_allowed_list:"):
                return cpulist.parse(line.split()[1])
    except OSError:
        pass
    return frozenset()


def switches(directory: str) -> int:
    """How often the thread of `directory`, below /proc, was taken off a CPU, and so had been put on one."""
    try:
        lines = [line.split() for line in files.read(f"{directory}/status").splitlines()]
    except OSError:
        return 0
    return sum(int(words[1]) for words in lines if words and words[0].endswith("voluntary_ctxt_switches:"))


def ran(directory: str) -> int:
    """Nanoseconds that the thread of `directory` has run (scheduler/sched-stats.rst, "/proc/<pid>/schedstat")."""
    try:
        return int(files.read(f"{directory}/schedstat").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def is_stopped(directory: str) -> bool:
    """Whether a signal such as SIGSTOP has stopped the process of `directory`, below /proc."""
    try:
        return files.read(f"{directory}/stat").rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process `pid`; that it has ended is as good."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@contextlib.contextmanager
def descriptor(pid: int) -> Iterator[int | None]:
    """A descriptor of the process, which stays its own whoever has the number later; None when it has ended."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield process
    finally:
        os.close(process)


def kill_after(process: int, seconds: float) -> bool:
    """Kill the process of that descriptor unless it ends within `seconds`; returns whether that had to be."""
    if select.select([process], [], [], seconds)[0]:
        return False
    try:
        import signal

        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:  # it has ended right now, and systemd has collected it
        return False
    return True


def has_ended(pid: int, seconds: float = 0) -> bool:
    """Whether the process has ended, or does within `seconds`; also while nobody has collected it yet."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)


def amounts(path: str) -> dict[str, int]:
    """Bytes by name of the lines of the file at `path` that are counted in kB. Raises OSError when it is gone.

    Other lines, such as those that count pages, are left out.
    """
    found = {}
    for line in files.read(path).splitlines():
        match line.split():
            case [name, amount, "kB"] if amount.isdecimal():
                found[name.removesuffix(":")] = int(amount) << 10
    return found


def of_process(root: str, pid: int) -> dict[str, int]:
    """The amounts of memory of process `pid`, such as RssAnon; none when it has ended."""
    try:
        return amounts(f"{root}/proc/{pid}/status")
    except OSError:
        return {}
