# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns long-lived hosts for development: a process that holds one by name and runs what it is asked to."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import cache
from .errors import CommandFailed, CommandTimeout, LabError, LabPanic, Result
from .host import Host

Json = dict[str, Any]


@contextlib.contextmanager
def _address(name: str) -> Iterator[str]:
    """The socket of `name`, by a path that is short enough for one wherever the cache is."""
    place = cache.root() / "up"
    place.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{name}.sock"
    finally:
        os.close(fd)


def _connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _address(name) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise LabError(f"there is no lab host {name!r}; start one: python3 -m tests.lab up {name}") from None
    return connection


def ask(name: str, **request: Any) -> Json:
    """One request to the host `name`; raises LabError, LabPanic or CommandTimeout as the Host's methods do."""
    with _connect(name) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        line = connection.makefile("rb").readline()
    if not line:
        raise LabError(f"the lab host {name!r} went away")
    reply: Json = json.loads(line)
    if "panic" in reply:
        raise LabPanic(reply["panic"])
    if "error" in reply:
        raise LabError(reply["error"])
    return reply


def run(name: str, command: str | list[str], timeout: float, stdin: bytes) -> Result:
    """Runs a command on the host `name`; the status is not checked. Raises as Host.run does."""
    data = base64.b64encode(stdin).decode()
    reply = ask(name, op="run", command=command, timeout=timeout, stdin=data)
    result = Result(reply["rc"], reply["stdout"], reply["stderr"])
    if reply["timed_out"]:
        raise CommandTimeout(str(command), result, timeout)
    return result


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        try:
            reply = self._answer(request)
        except LabPanic as error:
            reply = {"panic": str(error)}
        except Exception as error:  # the one who asked must learn of it, and the host stays
            reply = {"error": str(error) or repr(error)}
        self.wfile.write(json.dumps(reply).encode() + b"\n")

    def _answer(self, request: Json) -> Json:
        host = self.server.host
        match request["op"]:
            case "run":
                return self._run(request)
            case "put":
                host.put(Path(request["source"]), request["remote"], request["mode"])
            case "install":
                host.install(Path(request["source"]))
            case "reboot":
                host.reboot()
            case "console":
                return {"text": host.console()}
            case "down":
                threading.Thread(target=self.server.shutdown).start()
        return {}

    def _run(self, request: Json) -> Json:
        timed_out = False
        try:
            stdin = base64.b64decode(request["stdin"])
            result = self.server.host.run(request["command"], check=False, timeout=request["timeout"], stdin=stdin)
        except CommandTimeout as error:
            result, timed_out = error.result, True
        except CommandFailed as error:
            result = error.result
        return {"rc": result.rc, "stdout": result.stdout, "stderr": result.stderr, "timed_out": timed_out}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, address: str, host: Host) -> None:
        self.host = host
        super().__init__(address, _Handler)

    def service_actions(self) -> None:
        """Ends the process when QEMU is gone."""
        try:
            self.host.machine.check()
        except LabPanic:  # each command says so; the console is still worth a look
            pass
        except LabError:
            threading.Thread(target=self.shutdown).start()


def up(name: str, make: Callable[[], Host]) -> None:
    """Starts a process that makes a host and serves it as `name`; returns when it is ready.

    Raises LabError if the name is taken or the host cannot be made.
    """
    with contextlib.suppress(LabError):
        _connect(name).close()
        raise SystemExit(f"the lab host {name!r} is up already")
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os._exit(_serve(name, make, writer))
    os.close(writer)
    with open(reader) as words:
        trouble = words.read()
    if trouble != "ready":
        raise LabError(trouble or "the host's process ended at once")


def _serve(name: str, make: Callable[[], Host], writer: int) -> int:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        with make() as host, _address(name) as address:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)  # of one that was killed: nobody answered there
            with _Server(address, host) as server:
                os.write(writer, b"ready")
                os.close(writer)
                server.serve_forever(0.5)
            os.unlink(address)
    except Exception as error:  # the process that waits is the only one to tell
        with contextlib.suppress(OSError):
            os.write(writer, str(error).encode())
        return 1
    return 0


def names() -> list[str]:
    """The hosts that are up."""
    found = []
    for path in sorted((cache.root() / "up").glob("*.sock")):
        with contextlib.suppress(LabError):
            _connect(path.stem).close()
            found.append(path.stem)
    return found


if __name__ == "__main__":
    sys.exit("run python3 -m tests.lab")
