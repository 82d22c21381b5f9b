# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd itself, running: a user manager in namespaces of its own starts units, and tells what it has started.

It needs root and no systemd on the machine: `systemd --user` only asks for /run/systemd/system and a control group.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit import real_systemd

_SECONDS = 300
# Started in place of a unit's program: keeps the argv that the kernel has of it, by unit.
_PROGRAM = """#!/bin/sh
while read -r line; do
    case $line in 0::*) cat /proc/$$/cmdline > {directory}/argv/${{line##*/}};; esac
done < /proc/self/cgroup
"""
# In namespaces of mounts and control groups: the places, and what is left in them when all processes have ended.
_OUTER = r"""
set -eu
cd {directory}
mount --bind program {program}
mount -t tmpfs none /run
mkdir -p /run/systemd/system
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/{name}
status=0
unshare --pid --fork --mount-proc --kill-child bash inner || status=$?
find /sys/fs/cgroup/{name} -depth -type d -exec rmdir {{}} +
exit $status
"""
_INNER = r"""
set -eu
echo $$ > /sys/fs/cgroup/{name}/cgroup.procs
mkdir -m 700 runtime
export XDG_RUNTIME_DIR=$PWD/runtime SYSTEMD_UNIT_PATH=$PWD/units SYSTEMD_LOG_TARGET=null
{systemd} --user --unit=basic.target &
while [ ! -S runtime/systemd/private ]; do kill -0 $!; sleep 0.05; done
xargs -a names systemctl --user start
while read -r unit; do
    systemctl --user show -P ExecStart $unit > told/$unit
done < names
"""


class Started(NamedTuple):
    """`told` is its ExecStart property as systemctl shows it, words with blanks between them and variables unresolved.

    `argv` is what the process had in /proc, the program's name apart.
    """

    told: str
    argv: list[str]


def start(units: Mapping[str, str], program: str, value: Callable[[str], str]) -> dict[str, Started]:
    """Start the command of each of `units`, which is `program`, with the `value` of every variable in it.

    Nothing else of the units is used; their names are letters and digits. The test is skipped where there is no
    systemd, or no root.
    """
    systemd = real_systemd.program()
    if os.geteuid() != 0:
        pytest.skip(f"only root can give {systemd} namespaces of its own")
    with tempfile.TemporaryDirectory(prefix="manager-") as directory:
        _prepare(Path(directory), units, value)
        name = os.path.basename(directory)
        Path(directory, "inner").write_text(_INNER.format(name=name, systemd=systemd))
        outer = _OUTER.format(directory=directory, program=program, name=name)
        done = subprocess.run(
            ["unshare", "--mount", "--cgroup", "bash", "-c", outer],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(_started(Path(directory), units))


def _prepare(directory: Path, units: Mapping[str, str], value: Callable[[str], str]) -> None:
    directory.chmod(0o755)
    for name in ("units", "told", "argv"):
        (directory / name).mkdir()
    (directory / "program").write_text(_PROGRAM.format(directory=directory))
    (directory / "program").chmod(0o755)
    (directory / "names").write_text("".join(f"{name}\n" for name in units))
    (directory / "units/basic.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for name, text in units.items():
        commands = "".join(re.findall(r"^ExecStart=(?:.*\\\n)*.*\n", text, re.MULTILINE))
        variables = "".join(f"Environment={one}={value(one)}\n" for one in set(re.findall(r"\$\{(\w+)\}", commands)))
        text = f"[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n{commands}{variables}"
        (directory / f"units/{name}").write_text(text)


def _started(directory: Path, units: Mapping[str, str]) -> Iterator[tuple[str, Started]]:
    for name in units:
        told = (directory / "told" / name).read_text()
        # The script's interpreter and its own name come first.
        argv = (directory / "argv" / name).read_bytes().decode().split("\0")[2:-1]
        yield name, Started(told.partition(" argv[]=")[2].rpartition(" ; ignore_errors=")[0], argv)
