# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is at the other end of a Unix socket: the kernel's list of them (sock_diag(7), linux/unix_diag.h)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from kvmsup.effects import files
from kvmsup.records import NamedTuple

_SOCK_DIAG = 4  # the netlink family
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_SHOW_NAME, _SHOW_PEER = 0x1, 0x4
_NAME, _PEER = 0, 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ABOUT = struct.Struct("=BBBxIII")  # struct unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_PEER_INODE = struct.Struct("=I")


class Client(NamedTuple):
    """A process with a connection, in words for people."""

    pid: int
    what: str


class _Socket(NamedTuple):
    inode: int  # 0: connected, and nobody has accepted it yet
    path: str
    peer: int


def accepted(connection: socket.socket) -> bool:
    """Whether the server has accepted `connection`, rather than let it wait; true where the kernel does not tell."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return True  # something has been sent, or it has been closed again
    except OSError:
        inode = os.fstat(connection.fileno()).st_ino
    found = next((one for one in _sockets() if one.inode == inode), None)
    return found is None or found.peer != 0


def other_client(path: str, connection: socket.socket) -> Client | None:
    """Who has a connection that the server at `path` has accepted; None where nobody, or nobody that can be seen.

    `connection` itself does not count: it may have been accepted since it was last asked for.
    """
    own = os.fstat(connection.fileno()).st_ino
    peers = {one.peer for one in _sockets() if one.path == path and one.inode} - {0, own}
    return next(_owners(peers), None) if peers else None


def _sockets() -> list[_Socket]:
    """Every Unix stream socket of this network namespace; none where the kernel does not tell (CONFIG_UNIX_DIAG).

    What a server accepts is in the namespace of its client, whichever the server is in (net/unix/af_unix.c,
    unix_stream_connect).
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
            # All states, all inodes, no cookie.
            request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, ~0 & 0xFFFFFFFF, 0, _SHOW_NAME | _SHOW_PEER, 0, 0)
            head = _HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST | _DUMP, 1, 0)
            kernel.sendto(head + request, (0, 0))
            return list(_answers(kernel))
    except OSError:
        return []


def _answers(kernel: socket.socket) -> Iterator[_Socket]:
    while True:
        data = kernel.recv(1 << 18)
        place = 0
        while place + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, place)
            if kind in (_DONE, _ERROR) or length < _HEADER.size:
                return
            yield _socket(data[place + _HEADER.size : place + length])
            place += length + 3 & ~3


def _socket(message: bytes) -> _Socket:
    inode, path, peer = _ABOUT.unpack_from(message)[3], "", 0
    place = _ABOUT.size
    while place + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, place)
        value = message[place + _ATTRIBUTE.size : place + length]
        if kind == _NAME:
            path = os.fsdecode(value.rstrip(b"\0"))
        elif kind == _PEER:
            peer = _PEER_INODE.unpack(value)[0]
        place += max(length, _ATTRIBUTE.size) + 3 & ~3
    return _Socket(inode, path, peer)


def _owners(inodes: set[int]) -> Iterator[Client]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            opened = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # it has ended
            continue
        if any(_target(f"/proc/{pid}/fd/{number}") in wanted for number in opened):
            yield Client(int(pid), _told(int(pid)))


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _told(pid: int) -> str:
    """The process as a person knows it: what was typed, and on which terminal."""
    try:
        words = files.read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    except OSError:
        words = ""
    terminal = _target(f"/proc/{pid}/fd/0").removeprefix("/dev/")
    at = f" on {terminal}" if terminal.startswith(("pts/", "tty")) else ""
    return f"process {pid}{at}: {files.printable(words)[:80]}"
