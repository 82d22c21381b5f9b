# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does on a lab host what a guide tells its reader to do, and compares what is said with what the guide shows.

The reader is a person: who looks at a journal before the guest has booted looks again, and who has written a file has
it loaded by the time the next command is typed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.guides.transcript import Command, File, Guide, Shown, Step, missing
from tests.host import guest_disk
from tests.lab.errors import CommandTimeout, Result
from tests.lab.host import Host, Lab

# What changes nothing can be looked at again. On emulated CPUs a Linux guest needs some of its time to boot.
_LOOKS = re.compile(
    r"journalctl|grep|cat|systemctl (is-active|status|show)|kvmsup (list|status|check|host|plan|verify|topology)"
)
_LOOK_AGAIN_SECONDS = 30.0
_JOURNAL_SECONDS = 400.0
_COMMAND_SECONDS = 240.0
# What leaves the console, which would go on.
_KEYS = {"kvmsup console": "\x1d"}
_EDITS = re.compile(r"kvmsup (new|import) |/etc/kvmsup")
# A lab of emulated CPUs takes longer to load a file than `kvmsup check` waits for it.
_SLOW = re.compile(r"^/etc/.*: warning: systemd has not loaded this file as it is now.*\n  hint: .*\n", re.MULTILINE)
# kvmsup-reload goes on until nothing is edited any more, and the generators' directory is new after each reload.
_LOADED = """\
[ -z "$(find /etc/kvmsup /etc/kvmsup.toml -newer /run/systemd/generator 2>/dev/null)" ] \
&& [ "$(systemctl show -P ActiveState kvmsup-reload)" = inactive ]"""


class NotAsShown(AssertionError):
    """What a guide shows is not what happens."""

    def __init__(self, guide: str, command: Command, why: str, result: Result) -> None:
        expected = "\n".join(command.output) or "(whatever it says)"
        ends = f"(exit status {result.rc})\n" if result.rc else ""
        super().__init__(
            f"{guide}:{command.line}: # {command.text}\n{why}\n"
            f"--- expected\n{expected}\n--- actual\n{result.stdout.rstrip()}\n{ends}"
        )


@contextlib.contextmanager
def host_for(guide: Guide, lab: Lab, deb: Path) -> Iterator[Host]:
    """The host that a guide needs: <!-- host: KERNEL PARAMETERS -->, <!-- image: WHERE A DEBIAN'S DISK IS -->."""
    unknown = guide.needs.keys() - {"host", "image"}
    assert not unknown, f"no host can be made that has: {unknown}"
    assert guide.needs.get("image", guest_disk.REMOTE) == guest_disk.REMOTE
    if parameters := guide.needs.get("host"):
        with lab.boot(parameters) as host:
            host.install(deb)
            if "image" in guide.needs:
                guest_disk.put(host)
            yield host
    else:
        key = lab.installed(deb)
        with lab.fresh(guest_disk.snapshot(lab, key) if "image" in guide.needs else key) as host:
            yield host


def follow(host: Host, name: str, steps: Iterable[Step]) -> None:
    """Every step, in order; raises NotAsShown at the first that is not as the guide says."""
    for step in steps:
        match step:
            case File():
                _write(host, step)
            case Command():
                _type(host, name, step)
            case Shown():
                pass


def _write(host: Host, file: File) -> None:
    host.run(["mkdir", "-p", file.path.rpartition("/")[0]])
    host.put(file.text.encode(), file.path)
    _wait_until_loaded(host, file.path)


def _wait_until_loaded(host: Host, what: str) -> None:
    if _EDITS.search(what):
        host.wait_for(_LOADED, timeout=60)


def _type(host: Host, name: str, command: Command) -> None:
    """Type `command`, and look again for as long as it only looks and does not show what it shall."""
    patience = _JOURNAL_SECONDS if command.text.startswith("journalctl") else _LOOK_AGAIN_SECONDS
    until = time.monotonic() + patience
    while True:
        result = _run(host, command.text)
        why = _wrong(command, result)
        if why is None:
            return _wait_until_loaded(host, command.text)
        if time.monotonic() > until or not _LOOKS.match(command.text):
            raise NotAsShown(name, command, why, result)
        time.sleep(1)


def _run(host: Host, text: str) -> Result:
    """Both outputs are in `stdout`, as on a terminal."""
    keys = next((keys for begin, keys in _KEYS.items() if text.startswith(begin)), "")
    try:
        return host.run(["/bin/bash", "-c", f"exec 2>&1\n{text}"], check=False, timeout=_COMMAND_SECONDS, stdin=keys)
    except CommandTimeout as error:
        return Result(-1, f"{error.stdout}\n(killed after {_COMMAND_SECONDS:g} s)", "")


def _wrong(command: Command, result: Result) -> str | None:
    if result.rc != command.status:
        return f"its exit status is {result.rc}, not {command.status}"
    if command.output and (line := missing(command.output, _SLOW.sub("", result.stdout))) is not None:
        return f"not said, or not in this place: {line}"
    return None
