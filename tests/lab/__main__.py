# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's command line: build it, open a shell or run a command on a fresh host, keep one up for development."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import resident
from .errors import CommandTimeout, LabError, LabPanic, Result
from .host import Host, Lab, forget
from .progress import Progress

_TIMED_OUT = 124
_BROKEN = 125


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(action=action)
        return sub

    def making(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--suite", default="trixie", help="Debian suite of the host (default: %(default)s)")
        sub.add_argument("--deb", type=Path, metavar="FILE", help="install this package first")
        sub.add_argument("--key", default="base", help="restore this snapshot (default: %(default)s)")
        sub.add_argument("--cold", action="store_true", help="boot instead of restoring")

    def running(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--put", action="append", default=[], metavar="LOCAL:REMOTE", help="copy a file there first")
        sub.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds (default: %(default)g)")
        sub.add_argument("--stdin", action="store_true", help="hand standard input to the command")
        sub.add_argument("command", nargs="+", metavar="COMMAND", help="one word: for bash; several: run as they are")

    sub = verb("build", _build, "build the host and its saved state, where they are not in the cache")
    sub.add_argument("--suite", default="trixie")
    sub.add_argument("--again", action="store_true", help="remove what is in the cache first")
    sub.add_argument("--still", action="store_true", help="for guests that run no Linux: emulated faster")
    making(verb("shell", _shell, "a root shell on a fresh host, on its serial console; Ctrl-] ends it"))
    sub = verb("run", _run, "run one command on a fresh host")
    making(sub)
    running(sub)
    sub = verb("up", _up, "keep a host running under a name")
    sub.add_argument("name")
    making(sub)
    sub = verb("on", _on, "run a command on a host that is up")
    sub.add_argument("name")
    running(sub)
    for name, text in (
        ("down", "end a host"),
        ("reboot", "reboot a host"),
        ("console", "print a host's console"),
    ):
        verb(name, _tell, f"{text} that is up").add_argument("name")
    verb("list", _list, "the hosts that are up")
    return parser


def _build(options: argparse.Namespace) -> int:
    if options.again:
        forget(options.suite)
    Lab(options.suite, linux_guests=not options.still).ensure_built(Progress())
    return 0


def _make(options: argparse.Namespace) -> Host:
    lab = Lab(options.suite)
    lab.ensure_built(Progress())
    if options.cold:
        host = lab.boot()
        if options.deb:
            host.install(options.deb)
        return host
    return lab.fresh(lab.installed(options.deb) if options.deb else options.key)


def _command(options: argparse.Namespace) -> str | list[str]:
    words: list[str] = options.command
    return words[0] if len(words) == 1 else words


def _stdin(options: argparse.Namespace) -> bytes:
    return sys.stdin.buffer.read() if options.stdin else b""


def _files(options: argparse.Namespace) -> list[tuple[Path, str, int]]:
    files = []
    for pair in options.put:
        local, colon, remote = pair.partition(":")
        if not colon or not Path(local).is_file():
            raise SystemExit(f"--put {pair}: not LOCAL:REMOTE, or no such file")
        files.append((Path(local).absolute(), remote, os.stat(local).st_mode & 0o777))
    return files


def _show(result: Result) -> int:
    sys.stdout.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.write(result.stderr)
    return result.rc if result.rc >= 0 else 128 - result.rc


def _run(options: argparse.Namespace) -> int:
    files, stdin = _files(options), _stdin(options)
    with _make(options) as host:
        for file in files:
            host.put(*file)
        return _show(host.run(_command(options), check=False, timeout=options.timeout, stdin=stdin))


def _shell(options: argparse.Namespace) -> int:
    with _make(options) as host:
        host.machine.console.attach()
    return 0


def _up(options: argparse.Namespace) -> int:
    Lab(options.suite).ensure_built(Progress())
    resident.up(options.name, lambda: _make(options))
    return 0


def _on(options: argparse.Namespace) -> int:
    for source, remote, mode in _files(options):
        resident.ask(options.name, op="put", source=str(source), remote=remote, mode=mode)
    return _show(resident.run(options.name, _command(options), options.timeout, _stdin(options)))


def _tell(options: argparse.Namespace) -> int:
    sys.stdout.write(resident.ask(options.name, op=options.verb).get("text", ""))
    return 0


def _list(_: argparse.Namespace) -> int:
    print(*resident.names(), sep="\n")
    return 0


def main() -> int:
    options = _parser().parse_args()
    try:
        action: Callable[[argparse.Namespace], int] = options.action
        return action(options)
    except CommandTimeout as error:
        _show(error.result)
        print(f"lab: {error.args[0].splitlines()[0]}", file=sys.stderr)
        return _TIMED_OUT
    except (LabError, LabPanic) as error:
        print(f"lab: {error}", file=sys.stderr)
        return _BROKEN
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
