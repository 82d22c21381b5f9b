# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small synchronous QMP client (qemu docs/interop/qmp-spec.rst): connect, negotiate, execute, wait for events.

It never trusts the other side: QEMU may be replaced, may hang, and may be taken over by its guest.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Mapping

from kvmsup.effects import files
from kvmsup.errors import QmpError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

# query-cpus-fast of 4096 vCPUs is about 1 MB.
LONGEST_MESSAGE = 8 << 20
_MOST_EVENTS = 10_000


class Refused(QmpError):
    """Who was asked has understood a command and does not do it."""


class Conversation:
    """Commands and answers over one stream, bound to the life of one QEMU process."""

    peer = "QEMU"  # who answers, as messages name it

    def __init__(self, stream: socket.socket, pid: int, deadline: float | None = None) -> None:
        """Speak over `stream`, which is closed with this, to QEMU `pid`.

        `deadline`, on time.monotonic(), bounds every wait; None waits as long as QEMU lives.

        Raises QmpError when QEMU is gone.
        """
        self.pid = pid
        self.deadline = deadline
        self.events: list[str] = []  # names alone: QEMU decides how much it sends
        self._buffer = bytearray()
        self._socket = stream
        self._socket.setblocking(False)
        try:
            self._process = os.pidfd_open(pid)
        except OSError as error:
            self._socket.close()
            raise QmpError(f"QEMU is gone: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        os.close(self._process)

    def _ended(self, seconds: float) -> bool:
        return bool(select.select([self._process], [], [], seconds)[0])

    def negotiate(self) -> None:
        """Leave capabilities negotiation; answered once QEMU has built the machine. Raises QmpError."""
        if "QMP" not in self._message():
            raise QmpError("the monitor did not greet as QMP does")
        self.execute("qmp_capabilities")

    def execute(self, command: str, /, **arguments: object) -> Any:
        """What `command` returned; events on the way are kept in `events`. Raises QmpError."""
        self._send(_request(command, arguments))
        return self._answer(command)

    def hand_over(self, descriptor: int, command: str, /, **arguments: object) -> Any:
        """As `execute`, of a command that takes `descriptor` along, as add-fd and getfd do. Raises QmpError."""
        request = _request(command, arguments)
        self._wait(writing=True)
        try:
            sent = socket.send_fds(self._socket, [request], [descriptor])
        except OSError as error:
            raise QmpError(f"QEMU's monitor takes no descriptor: {error.strerror}") from None
        self._send(request[sent:])
        return self._answer(command)

    def reset(self) -> None:
        """Reset the machine and wait until that is done: the command only asks for it. Raises QmpError."""
        self.events.clear()
        self.execute("system_reset")
        while self.events[-1:] != ["RESET"]:
            message = self._message()
            if "event" not in message:
                raise QmpError(f"{self.peer} answered what nobody has asked")
            self._keep(message)

    def _answer(self, command: str) -> Any:
        while True:
            message = self._message()
            if "event" in message:
                self._keep(message)
            elif "return" in message:
                return message["return"]
            elif "error" in message:
                raise Refused(f"{self.peer} refused {command}: {_description(message['error'])}")
            else:
                raise QmpError(f"{self.peer} answered {command} with neither a result nor an error")

    def _keep(self, event: dict[str, Any]) -> None:
        if len(self.events) >= _MOST_EVENTS:
            raise QmpError(f"{self.peer} sent over {_MOST_EVENTS} events instead of an answer")
        self.events.append(str(event["event"])[:80])

    def wait_for_end(self, seconds: float) -> bool:
        """Read and keep events for up to `seconds`; returns whether QEMU has ended. Raises QmpError."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            ready = select.select([self._process, self._socket], [], [], max(0.0, left))[0]
            if self._process in ready:
                return True
            if not ready or left <= 0:  # also while it does not stop to send
                return False
            try:
                message = self._message()
                if "event" in message:
                    self._keep(message)
            except QmpError:
                # The monitor closes a moment before the process ends.
                return self._ended(max(0.0, until - time.monotonic()))

    def _send(self, data: bytes) -> None:
        while data:
            self._wait(writing=True)
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise QmpError(f"QEMU's monitor is gone: {error.strerror}") from None

    def _message(self) -> dict[str, Any]:
        seen = 0
        while self._buffer.find(b"\n", seen) < 0:
            seen = len(self._buffer)  # once is enough: it may come byte by byte
            self._receive()
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise QmpError(f"{self.peer} sent something that is not JSON") from None
        if not isinstance(message, dict):
            raise QmpError(f"{self.peer} sent something that is not a QMP message")
        return message

    def _receive(self) -> None:
        """Wait for more and put it into the buffer, which is bounded."""
        if len(self._buffer) > LONGEST_MESSAGE:
            raise QmpError(f"{self.peer} sent a message of over {LONGEST_MESSAGE >> 20} MiB")
        self._wait(writing=False)
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            raise QmpError(f"QEMU's monitor is gone: {error.strerror}") from None
        if not data:
            raise QmpError("QEMU closed its monitor")
        self._buffer += data

    def _wait(self, *, writing: bool) -> None:
        """Until the socket is ready. QEMU's end counts only once there is nothing left to read."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if left is None or left > 0:
            reading, sending = ([], [self._socket]) if writing else ([self._socket], [])
            ready, sendable, _ = select.select([self._process, *reading], sending, [], left)
            if sendable or self._socket in ready:
                return
            if ready:
                raise QmpError("QEMU ended")
        raise QmpError(self._late() or f"{self.peer} has not answered in time")

    def _late(self) -> str:
        """Why there is no answer, where that is not the other side's fault."""
        return ""


class Monitor(Conversation):
    """One connection to one monitor of a guest."""

    def __init__(self, path: str, pid: int, deadline: float | None = None) -> None:
        """Connect to the socket at `path`, waiting until QEMU `pid` has made it; `deadline` bounds this too.

        Raises QmpError when QEMU ends or the deadline passes.
        """
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), pid, deadline)
        self._path = path
        try:
            self._connect(path, pid)
        except BaseException:
            self.close()
            raise

    def _late(self) -> str:
        from kvmsup.effects import peers  # only what has failed needs it

        return "" if peers.accepted(self._socket) else self._in_use()

    def _in_use(self) -> str:
        """Who else QEMU has let in, as it serves one client; "" where nobody is seen."""
        from kvmsup.effects import peers

        other = peers.other_client(self._path, self._socket)
        return f"{self._path} is in use by {other.what}" if other else ""

    def _connect(self, path: str, pid: int) -> None:
        while True:
            try:
                self._socket.connect(path)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                # Between exec and listen, or others are waiting already; the process may also end there.
                if self._ended(0.002):
                    raise QmpError("QEMU ended before it could be spoken to") from None
                if self.deadline is not None and time.monotonic() > self.deadline:
                    waiting = isinstance(error, BlockingIOError)
                    why = f"others wait at {path} already" if waiting else f"QEMU has not opened {path} in time"
                    raise QmpError(self._in_use() or why) from None
            except OSError as error:
                raise QmpError(f"{path}: {error.strerror or error}") from None
            else:
                return check_listener(self._socket, path, pid)


def check_listener(connected: socket.socket, path: str, pid: int) -> None:
    """Raises QmpError when the socket at `path`, which `connected` is of, is another process's than `pid`.

    The directory belongs to QEMU's user: who takes QEMU over could lead root to another guest's.
    """
    listening = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    if listening != pid:
        raise QmpError(f"{path} leads to process {listening} instead of QEMU, {pid}")


def _request(command: str, arguments: Mapping[str, object]) -> bytes:
    request: dict[str, object] = {"execute": command}
    if arguments:
        request["arguments"] = arguments
    return json.dumps(request).encode() + b"\n"


def _description(error: object) -> str:
    described = error.get("desc") if isinstance(error, dict) else None
    return files.printable(str(described or error)[:500])


def vcpu_threads(monitor: Conversation) -> dict[int, int]:
    """Host thread ids by vCPU index: QMP's thread-id is the tid, props.thread-id the guest's SMT thread.

    Raises QmpError.
    """
    try:
        found = {int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in monitor.execute("query-cpus-fast")}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise QmpError("QEMU's list of vCPUs is not as its schema says") from None
    return dict(sorted(found.items()))


def iothreads(monitor: Conversation) -> dict[str, int]:
    """Host thread ids by the iothread's name. Raises QmpError."""
    try:
        listed = monitor.execute("query-iothreads")
        return {files.printable(str(one["id"])[:80]): int(one["thread-id"]) for one in listed}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise QmpError("QEMU's list of iothreads is not as its schema says") from None
