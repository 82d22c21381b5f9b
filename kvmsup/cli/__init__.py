# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmsup command: one module a verb, imported only when it is asked for.

Exit status: 0 good, 1 the configuration, the host or a guest is at fault, 2 usage.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Sequence

from kvmsup import __version__
from kvmsup.errors import KvmsupError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any, TextIO

_OTHERWISE = {"import": "importing"}
_WRITING = ("new", "import")  # TOML, for which there is a library
_WATCH_SECONDS = 2.0


def parser() -> argparse.ArgumentParser:
    """The command line of kvmsup(1)."""
    import argparse

    top = argparse.ArgumentParser(prog="kvmsup", description="KVM guests as ordinary systemd services")
    top.add_argument("--version", action="version", version=f"kvmsup {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    check = verbs.add_parser("check", help="every error in the configuration, all at once")
    check.add_argument("guests", nargs="*", metavar="GUEST", help="a guest, or - for a file on standard input; all")
    check.add_argument("--root", default="", metavar="DIR", help="check the configuration below DIR")

    _watch(verbs.add_parser("list", help="guests and the host at a glance"))

    status = verbs.add_parser("status", help="everything about one guest: threads, CPUs, memory")
    status.add_argument("guest", metavar="GUEST")
    _watch(status).add_argument(
        "--noise", type=_seconds, default=0.0, metavar="SECONDS", help="listen on its isolated CPUs, that long"
    )

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
    _watch(topology)

    _new(verbs.add_parser("new", help="write the file of a new guest"))

    _import(verbs.add_parser("import", help="write the file of a guest from a libvirt domain's XML"))

    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="for programs")
    return top


def _watch(verb: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    again = verb.add_mutually_exclusive_group()
    again.add_argument(
        "--watch", action="store_const", const=_WATCH_SECONDS, default=0.0, help="again every 2 seconds, until Ctrl-C"
    )
    again.add_argument("--interval", dest="watch", type=_seconds, metavar="SECONDS", help="watch, that often")
    return again


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


def _import(importing: argparse.ArgumentParser) -> None:
    importing.add_argument("file", metavar="FILE", help="what virsh dumpxml writes; - is standard input")
    importing.add_argument(
        "--name", default="", metavar="NAME", help="of the guest; as in libvirt, as far as that is one"
    )
    importing.add_argument("--output", default="", metavar="PATH", help="not below /etc/kvmsup; - only shows it")


def _key(text: str) -> bytes:
    """The byte of a control key in caret notation; none for "none"."""
    if text == "none":
        return b""
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes((ord(text[1].upper()) & 0x1F,))
    from argparse import ArgumentTypeError

    raise ArgumentTypeError(f'"{text}" is not ^ and one of A to Z @ [ \\ ] ^ _, and not none')


def _size(text: str) -> int:
    from argparse import ArgumentTypeError

    from kvmsup import sizes

    try:
        return sizes.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(f'"{text}" {error}') from None


def _seconds(text: str) -> float:
    from argparse import ArgumentTypeError

    try:
        if 0.1 <= (found := float(text)) <= 86400:
            return found
    except ValueError:
        pass
    raise ArgumentTypeError(f'"{text}" is no number of seconds from 0.1 to 86400')


def plain(words: Sequence[str]) -> Any:
    """What `parser` makes of a verb that people ask all day long, with nothing but names and --json; else None.

    To import argparse takes longer than Python does to start, and most of what is left of such a verb.
    """
    verb, names = words[0] if words else "", [word for word in words[1:] if word != "--json"]
    if any(name[:1] == "-" for name in names):
        return None
    namespace: Any = type(sys.implementation)  # types.SimpleNamespace
    asked = namespace(verb=verb, json=len(names) < len(words) - 1)
    if verb == "list" and not names:
        asked.watch = 0.0
    elif verb == "status" and len(names) == 1:
        asked.guest, asked.watch, asked.noise = names[0], 0.0, 0.0
    elif verb == "check":
        asked.guests, asked.root = names, ""
    else:
        return None
    return asked


def module_of(verb: str) -> str:
    """The module that runs `verb`, which is called like it, but where Python has the word already."""
    return f"kvmsup.cli.{_OTHERWISE.get(verb, verb.replace('-', '_'))}"


def packages() -> None:
    """Have Python find the packages of others: kvmsup(1) is started without, as few verbs need any (python3 -S)."""
    if sys.flags.no_site:
        import site

        site.main()


def _module(verb: str) -> Any:
    """As importlib.import_module does it, whose own import is not free."""
    if verb in _WRITING:
        packages()
    name = module_of(verb)
    __import__(name)
    return sys.modules[name]


# For what kvmsup itself says, where there is nothing else.
_PLAIN = {"·": "|", "…": "...", "×": "x", "→": "->", "–": "-", "µ": "u"}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """A terminal that cannot show a character gets a plain one or its escape, not a traceback."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    found = (_PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text)
    return "".join(found), error.end


def _have_standard_error() -> None:
    """Where it was closed, what is for it would go to standard output: print(file=None) means that."""
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _be_readable() -> None:
    codecs.register_error("plainly", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Python takes C for UTF-8 (PEP 540); who asks for C by name means it.
            plain = os.environ.get("LC_ALL") in ("C", "POSIX")
            stream.reconfigure(encoding="ascii" if plain else stream.encoding, errors="plainly")


# What a file system or a device says to a write that has no more room, or none that lasts.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Raises SystemExit for wrong usage, and after --help and --version."""
    words = sys.argv[1:] if arguments is None else arguments
    _have_standard_error()
    _be_readable()
    try:
        return _told(words)
    except BrokenPipeError:  # whoever read the listing has seen enough
        _to_nowhere(sys.stdout, sys.stderr)
        return 1
    except OSError as error:
        # Files of ours that cannot be written are KvmsupErrors, and a path that cannot be opened has a name.
        if error.errno not in _CANNOT_WRITE or error.filename:
            raise
        _cannot_write(error)
        return 1
    except KeyboardInterrupt:
        return 130


def _told(words: Sequence[str]) -> int:
    """As `main`, until all that is told has left the program: an error at exit would be nobody's."""
    try:
        asked = plain(words) or parser().parse_args(words)
        return int(_module(asked.verb).run(asked))
    except KvmsupError as error:
        print(f"kvmsup: {error}", file=sys.stderr)
        return 1
    finally:
        if sys.stdout:  # there is none where the descriptor was closed
            sys.stdout.flush()


def _to_nowhere(*streams: TextIO | None) -> None:
    """What is still in the buffers must not fail a second time (docs.python.org, signal, "Note on SIGPIPE")."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, streams):
        os.dup2(nothing, stream.fileno())
    os.close(nothing)


def _cannot_write(error: OSError) -> None:
    _to_nowhere(sys.stdout)
    try:
        print(f"kvmsup: standard output: {error.strerror}", file=sys.stderr, flush=True)
    except OSError:  # it was standard error
        _to_nowhere(sys.stderr)
