# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns the connection to the agent inside a lab host: requests from any thread, each answered by its id."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import LabError

# How long the agent may take over a reply beyond what the command itself was given. Emulated CPUs are slow, and
# a loaded machine makes them slower.
_GRACE = 60.0
_LOOK = 0.5

Json = dict[str, Any]


class Channel:
    """Speaks JSON lines with the agent over `connection`; `check` raises what is wrong with the machine."""

    def __init__(self, connection: socket.socket, check: Callable[[], None]) -> None:
        self._connection = connection
        self._check = check
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Json]] = {}
        self._sending = threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()

    def request(self, op: str, timeout: float = 0.0, **arguments: Any) -> Json:
        """The agent's reply; waits `timeout` seconds and a grace for a slow machine.

        Raises LabPanic and LabError from the check, LabError if the agent stays silent or refuses.
        """
        reply = self._wait(self.send(op, **arguments), timeout + _GRACE)
        if reply is None:
            self._check()
            raise LabError(f"the lab's agent did not answer {op} within {timeout + _GRACE:g} s")
        if "error" in reply:
            raise LabError(f"the lab's agent could not {op}: {reply['error']}")
        return reply

    def send(self, op: str, **arguments: Any) -> int:
        """Sends a request and returns its number."""
        number = next(self._numbers)
        self._waiting[number] = queue.SimpleQueue()
        line = b"\n" + json.dumps({"id": number, "op": op, **arguments}).encode() + b"\n"
        with self._sending:
            try:
                self._connection.sendall(line)
            except OSError as error:
                self._check()
                raise LabError(f"the lab's agent cannot be reached: {error}") from None
        return number

    def boot(self, within: float) -> str:
        """The id of the present boot, waiting for an agent to answer; a request sent too early may be lost.

        Raises LabError after `within` seconds.
        """
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            reply = self._wait(self.send("hello"), 2.0)
            if reply and "boot" in reply:
                return str(reply["boot"])
        self._check()
        raise LabError(f"no answer from the lab's agent within {within:g} s")

    def _wait(self, number: int, timeout: float) -> Json | None:
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    return self._waiting[number].get(timeout=min(left, _LOOK))
                self._check()
            return None
        finally:
            del self._waiting[number]

    def _receive(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed: whoever waits learns it from the check
            for line in self._connection.makefile("rb"):
                self._deliver(line)

    def _deliver(self, line: bytes) -> None:
        try:
            reply = json.loads(line)
        except ValueError:  # the rest of something an earlier agent was sending
            return
        waiting = self._waiting.get(reply.get("id", 0)) if isinstance(reply, dict) else None
        if waiting:
            waiting.put(reply)
