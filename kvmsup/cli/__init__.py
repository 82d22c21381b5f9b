# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmsup command: one module a verb, imported only when it is asked for.

Exit status: 0 good, 1 the configuration, the host or a guest is at fault, 2 usage.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from kvmsup import __version__, sizes
from kvmsup.errors import KvmsupError

_OTHERWISE = {"import": "importing"}


def parser() -> argparse.ArgumentParser:
    """The command line of kvmsup(1)."""
    top = argparse.ArgumentParser(prog="kvmsup", description="KVM guests as ordinary systemd services")
    top.add_argument("--version", action="version", version=f"kvmsup {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    check = verbs.add_parser("check", help="every error in the configuration, all at once")
    check.add_argument("guests", nargs="*", metavar="GUEST", help="a guest, or - for a file on standard input; all")
    check.add_argument("--root", default="", metavar="DIR", help="check the configuration below DIR")

    verbs.add_parser("list", help="guests and the host at a glance")

    status = verbs.add_parser("status", help="everything about one guest: threads, CPUs, memory")
    status.add_argument("guest", metavar="GUEST")

    plan = verbs.add_parser("plan", help="where guests would go, and why; nothing is touched")
    plan.add_argument("guest", nargs="?", default="", metavar="GUEST", help="one guest as if started now; all")
    plan.add_argument("--root", default="", metavar="DIR", help="the host whose /etc, /sys and /run are below DIR")

    verify = verbs.add_parser("verify", help="read back what guests were given; 1 when something differs")
    verify.add_argument("guests", nargs="*", metavar="GUEST", help="a running guest; all that run")

    models = verbs.add_parser("cpu-models", help="the CPU models that QEMU knows, and which of them this host can run")
    models.add_argument("name", nargs="?", metavar="MODEL", help="everything about one model")
    models.add_argument("--usable", action="store_true", help="only those that this host can run")
    models.add_argument("--machine", default="q35", metavar="TYPE", help="versions as with that machine type; q35")
    models.add_argument("--accel", default="kvm", choices=("kvm", "tcg"), help="what QEMU emulates instead; kvm")

    balloon = verbs.add_parser("balloon", help="how much memory a running guest has, or should have")
    balloon.add_argument("guest", metavar="GUEST")
    balloon.add_argument("size", nargs="?", type=_size, metavar="SIZE", help="make it that large, such as 3G")

    console = verbs.add_parser("console", help="the guest's console; Ctrl-] leaves it")
    console.add_argument("guest", metavar="GUEST")
    console.add_argument("--detach-key", default="^]", type=_key, metavar="KEY", help="such as ^], or none; ^]")

    freeze = verbs.add_parser("freeze", help="run a command while the guest's file systems are frozen")
    freeze.add_argument("guest", metavar="GUEST")
    freeze.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="a command and its arguments")

    verbs.add_parser("host", help="whether this host is fit for guests, and what would make it so")

    topology = verbs.add_parser("topology", help="a picture of the host: which guest has which CPU")
    topology.add_argument("--root", default="", metavar="DIR", help="the host whose /sys and /run are below DIR")
    topology.add_argument("--svg", default="", metavar="FILE", help="write it as SVG; - is standard output")

    _new(verbs.add_parser("new", help="write the file of a new guest"))

    importing = verbs.add_parser("import", help="write the file of a guest from a libvirt domain's XML")
    importing.add_argument("file", metavar="FILE", help="what virsh dumpxml writes; - is standard input")
    importing.add_argument(
        "--name", default="", metavar="NAME", help="of the guest; as in libvirt, as far as that is one"
    )
    importing.add_argument("--output", default="", metavar="PATH", help="not below /etc/kvmsup; - only shows it")

    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="for programs")
    return top


def _new(new: argparse.ArgumentParser) -> None:
    new.add_argument("guest", metavar="GUEST")
    new.add_argument("--image", default="", metavar="FILE", help="its disk is a copy of this one, raw or qcow2")
    new.add_argument("--cdrom", default="", metavar="FILE", help="an installer, in an ISO image")
    new.add_argument("--disk", type=_size, default=0, metavar="SIZE", help="of its disk; that of the image")
    new.add_argument("--vcpus", type=int, default=2, metavar="N", help="2")
    new.add_argument("--memory", type=_size, default=2 << 30, metavar="SIZE", help="2G")
    net = new.add_mutually_exclusive_group()
    net.add_argument("--bridge", default="", metavar="NAME", help="its network is this bridge of the host")
    net.add_argument("--user-net", action="store_true", help="its network is behind the host's address")
    new.add_argument("--dedicated", action="store_true", help="host CPUs of its own")
    new.add_argument("--hugepages", default="", choices=("2M", "1G"), help="memory of hugepages")
    new.add_argument("--uefi", action="store_true", help="UEFI instead of BIOS")
    new.add_argument("--machine", default="", metavar="TYPE", help="QEMU's machine type; the newest q35")
    new.add_argument("--description", default="", metavar="TEXT")
    new.add_argument("--hostname", default="", metavar="NAME", help="told to cloud-init")
    new.add_argument("--ssh-key", action="append", default=[], metavar="FILE", help="a public key, for cloud-init")
    new.add_argument("--user-data", default="", metavar="FILE", help="everything that cloud-init is told")
    new.add_argument("--print", action="store_true", help="only show the file")


def _key(text: str) -> bytes:
    """The byte of a control key in caret notation; none for "none"."""
    if text == "none":
        return b""
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes((ord(text[1].upper()) & 0x1F,))
    raise argparse.ArgumentTypeError(f'"{text}" is not ^ and one of A to Z @ [ \\ ] ^ _, and not none')


def _size(text: str) -> int:
    try:
        return sizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'"{text}" {error}') from None


def module_of(verb: str) -> str:
    """The module that runs `verb`, which is called like it, but where Python has the word already."""
    return f"kvmsup.cli.{_OTHERWISE.get(verb, verb.replace('-', '_'))}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    asked = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its escape, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = importlib.import_module(module_of(asked.verb)).run(asked)
        sys.stdout.flush()
        return int(status)
    except KvmsupError as error:
        print(f"kvmsup: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the listing has seen enough. What is still in the buffer must not fail a second time at exit
        # (docs.python.org, signal, "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
