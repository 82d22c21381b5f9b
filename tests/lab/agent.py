# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program inside the lab: runs commands and moves files for the tests, over the virtio-serial port lab.0.

One JSON object a line each way; every request has an "id", which its reply repeats. Requests run in threads, so a
stuck command blocks nothing but itself. Stands alone: it is copied into the image.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

PORT = "/dev/virtio-ports/lab.0"
# As from root's own shell, whatever environment the agent was started in.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "TERM": "dumb",
}
_DRAIN = 1.0

Json = dict[str, Any]


class _Collector(threading.Thread):
    """Reads one output to its end. It goes on after the reply: a program left running must not get SIGPIPE."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.data = bytearray()
        self._fd = fd
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._fd, 65536):
            self.data += chunk
        os.close(self._fd)


def run(request: Json) -> Json:
    """Runs request["command"] (a list, or a string for bash); kills its session after "seconds"."""
    command = request["command"]
    argv = ["/bin/bash", "-c", command] if isinstance(command, str) else command
    with tempfile.TemporaryFile() as stdin:
        stdin.write(base64.b64decode(request.get("stdin", "")))
        stdin.seek(0)
        process, collectors = _spawn(argv, stdin.fileno())
    timed_out = False
    try:
        process.wait(request["seconds"])
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for collector in collectors:
        collector.join(_DRAIN)
    out, err = (base64.b64encode(bytes(c.data)).decode() for c in collectors)
    return {"rc": process.returncode, "stdout": out, "stderr": err, "timed_out": timed_out}


def _spawn(argv: list[str], stdin: int) -> tuple[subprocess.Popen[bytes], list[_Collector]]:
    out, err = os.pipe(), os.pipe()
    try:
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=out[1],
            stderr=err[1],
            env=ENVIRONMENT,
            cwd="/root",
            start_new_session=True,
            umask=0o022,
        )
    except BaseException:
        os.close(out[0])
        os.close(err[0])
        raise
    finally:
        os.close(out[1])
        os.close(err[1])
    return process, [_Collector(out[0]), _Collector(err[0])]


def write(request: Json) -> Json:
    """Writes "data" at "offset" of the file; the piece at 0 empties it, the one with "mode" ends it."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if request["offset"] == 0 else 0)
    fd = os.open(request["path"], flags, 0o600)
    try:
        os.pwrite(fd, base64.b64decode(request["data"]), request["offset"])
        if "mode" in request:
            os.fchmod(fd, request["mode"])
    finally:
        os.close(fd)
    return {}


def read(request: Json) -> Json:
    """Up to "size" bytes at "offset"; none at the end. Files of /proc and /sys are read whole by this, too."""
    with open(request["path"], "rb", buffering=0) as file:
        file.seek(request["offset"])
        data = bytearray()
        while len(data) < request["size"] and (chunk := file.read(request["size"] - len(data))):
            data += chunk
    return {"data": base64.b64encode(bytes(data)).decode()}


def hello(request: Json) -> Json:
    """Which boot this is; sets the clock to "now" (seconds since 1970) if that is given."""
    if "now" in request:
        time.clock_settime(time.CLOCK_REALTIME, request["now"])
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"boot": file.read().strip()}


OPERATIONS: dict[str, Callable[[Json], Json]] = {"run": run, "write": write, "read": read, "hello": hello}


class Agent:
    """Serves the port until the end of time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()

    def serve(self) -> None:
        self._send({"agent": os.getpid()})
        pending = bytearray()
        while True:
            chunk = os.read(self._port, 65536)
            if not chunk:  # nobody at the other end
                time.sleep(0.1)
            pending += chunk
            *lines, pending = pending.split(b"\n") if b"\n" in chunk else [pending]
            for line in lines:
                self._accept(bytes(line))

    def _accept(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:  # the rest of something sent before this agent started
            return
        if isinstance(request, dict):
            threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def _answer(self, request: Json) -> None:
        try:
            reply = OPERATIONS[request["op"]](request)
        except Exception as error:  # whatever it is, the one who asked must learn of it
            reply = {"error": f"{type(error).__name__}: {error}"}
        self._send({"id": request.get("id"), **reply})

    def _send(self, message: Json) -> None:
        data = b"\n" + json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._port, data) :]


def main() -> None:
    while not os.path.exists(PORT):
        time.sleep(0.2)
    Agent(os.open(PORT, os.O_RDWR | os.O_CLOEXEC)).serve()


if __name__ == "__main__":
    main()
