# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks real shells what they would complete a command line to, as a user without rights, on a host of the test's own.

The host's /etc/kvmsup, control groups and network devices are mounted over in a mount namespace, so that completions
are tested as they are installed. bash and zsh are asked on a terminal, where a key puts in all that they offer; the
command then prints the words that it was given, and so quoting is tested too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMPLETIONS = Path(__file__).parents[2] / "packaging/completions"
_PATH = "/usr/bin:/bin"
_NOBODY = "65534"
_PATIENCE_SECONDS = 60.0
_ALL = b"\x14"  # Ctrl-T, which the shells below have for "put in all"
_READY = "ready:"  # the prompt: what is typed before it would be shown twice

# $1 is the directory with the test's host. Symbolic links, since everything else in /etc stays as it is.
_MOUNTS = """
set -e
mount --rbind /etc "$1/was"
mount -t tmpfs none /etc
for file in "$1"/was/*; do ln -s "$file" /etc/; done
rm -f /etc/kvmsup /etc/kvmsup.toml
mkdir /etc/kvmsup
mount --bind "$1/kvmsup" /etc/kvmsup
mount --bind "$1/cgroup" /sys/fs/cgroup
mount --bind "$1/net" /sys/class/net
[ ! -e "$1/no-qemu" ] || mount --bind /dev/null "$(command -v qemu-system-x86_64)"
cd "$1/here"
shift
exec "$@"
"""

_BASH = r"""
PS1={ready} PS2= HISTFILE=
bind 'set enable-bracketed-paste off' 'set completion-query-items 0' 'set page-completions off' 2>/dev/null
bind 'set enable-bracketed-paste off'
bind '"\C-t": insert-completions'
. {file}
kvmsup() {{ printf '%s\0' "$@" END >{words}; }}
"""

_ZSH = r"""
PROMPT={ready} RPROMPT= PS2= HISTFILE=
unsetopt zle_bracketed_paste prompt_cr prompt_sp beep 2>/dev/null
unset zle_bracketed_paste
fpath=({directory} $fpath)
autoload -U compinit && compinit -u -D
put-in-all() {{ _main_complete; compstate[insert]=all; compstate[list]=; }}
zle -C put-in-all complete-word put-in-all
bindkey -e
bindkey '^T' put-in-all
kvmsup() {{ printf '%s\0' "$@" END >{words}; }}
"""

_FISH = r"""
source {file}
while read -l line
    complete -C $line
    printf '\0'
end
"""


class Host:
    """A directory with what the completions look at, which anybody may read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("kvmsup", "cgroup/kvm.slice", "net", "here", "was", "completions"):
            (directory / name).mkdir(parents=True)
        shutil.copy(COMPLETIONS / "kvmsup.bash", directory / "completions/kvmsup.bash")
        shutil.copy(COMPLETIONS / "kvmsup.zsh", directory / "completions/_kvmsup")
        shutil.copy(COMPLETIONS / "kvmsup.fish", directory / "completions/kvmsup.fish")

    def guest(self, name: str) -> None:
        (self.directory / f"kvmsup/{name}.toml").touch()

    def running(self, name: str, kind: str = "shared") -> None:
        (self.directory / f"cgroup/kvm.slice/kvm-{kind}.slice/kvm@{name}.service").mkdir(parents=True)

    def without_qemu(self) -> None:
        """A QEMU that cannot be run, where there is one."""
        if shutil.which("qemu-system-x86_64", path=_PATH):
            (self.directory / "no-qemu").touch()

    def command(self, *arguments: str) -> list[str]:
        """`arguments` as a command on this host, by one who is nobody where the test is root."""
        own = os.geteuid() != 0
        less = (
            [] if own else ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs"]
        )
        return [
            *("unshare", *(("--user", "--map-root-user") if own else ()), "--mount", "sh", "-c", _MOUNTS, "sh"),
            *(str(self.directory), *less, *arguments),
        ]


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """A host of the test's own; skips the test where this machine allows no mounts."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        made = Host(Path(directory))
        tried = subprocess.run(made.command("true"), capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"no mount namespace to be had here: {tried.stderr.strip()}")
        yield made


def _environment(directory: Path) -> dict[str, str]:
    return {"PATH": _PATH, "TERM": "dumb", "HOME": str(directory / "here"), "LC_ALL": "C.UTF-8"}


class Shell:
    """A shell that is asked for completions; `name` is what it is called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def offers(self, line: str) -> list[str]:
        """What it would put at the end of `line`."""
        raise NotImplementedError


class _OnTerminal(Shell):
    """bash and zsh: `line` is typed, then the key that puts in all, then Enter."""

    def __init__(self, name: str, terminal: int, words: int) -> None:
        super().__init__(name)
        self._terminal, self._words = terminal, words

    def offers(self, line: str) -> list[str]:
        os.write(self._terminal, line.encode() + _ALL + b"\n")
        given, shown = self._answer()
        text = shown.replace(b"\r", b"").replace(b"\a", b"").decode()
        assert text.count("\n") == 1, f"{self.name} printed more than the line: {text!r}"
        # The words that were there already.
        behind = line.split(" ")
        kept = [word.decode() for word in given][len(behind) - 2 :]
        return [] if kept == [behind[-1]] or kept == [""] else kept

    def _answer(self) -> tuple[list[bytes], bytes]:
        """The words that the command was given, and what the terminal showed until then."""
        given, shown = b"", b""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not (given.endswith(b"END\0") and shown.endswith(_READY.encode())):
            ready, _, _ = select.select([self._terminal, self._words], [], [], until - time.monotonic())
            assert ready, f"{self.name} does not answer; it has shown {shown!r}"
            for descriptor in ready:
                found = os.read(descriptor, 65536)
                assert found, f"{self.name} has ended; it has shown {shown!r}"
                given, shown = (given + found, shown) if descriptor == self._words else (given, shown + found)
        return given.split(b"\0")[:-2], shown


class Fish(Shell):
    """fish has a command for it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], errors: Path) -> None:
        super().__init__(name)
        self._process, self._errors = process, errors

    def offers(self, line: str) -> list[str]:
        return [answer.partition("\t")[0] for answer in self.described(line)]

    def described(self, line: str) -> list[str]:
        """The same, each with a tab and its description."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        said = b""
        while not said.endswith(b"\0"):
            said += (one := os.read(self._process.stdout.fileno(), 65536))
            assert one, self._errors.read_text()
        assert self._errors.read_text() == ""
        return said.decode().rstrip("\0").splitlines()


@contextlib.contextmanager
def started(name: str, on: Host, before: str = "") -> Iterator[Shell]:
    """The shell `name` with kvmsup's completion, on that host; skips the test where it is not installed.

    `before` is what somebody has in their own start file.
    """
    program = shutil.which(name)
    if not program:
        pytest.skip(f"{name} is not installed")
    if name == "fish":
        with _fish(program, on) as shell:
            yield shell
    else:
        with _on_terminal(name, program, on, before) as shell:
            yield shell


@contextlib.contextmanager
def _fish(program: str, on: Host) -> Iterator[Shell]:
    script = _FISH.format(file=on.directory / "completions/kvmsup.fish")
    errors = on.directory / "errors"
    pipe = subprocess.PIPE
    with errors.open("w") as said:
        command = on.command(program, "--no-config", "-c", script)
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, env=_environment(on.directory))
    with process:
        yield Fish("fish", process, errors)
        assert process.stdin
        process.stdin.close()


@contextlib.contextmanager
def _on_terminal(name: str, program: str, on: Host, before: str) -> Iterator[Shell]:
    directory, answers = on.directory / "completions", on.directory / f"words.{name}"
    script = {"bash": _BASH, "zsh": _ZSH}[name].format(
        file=directory / "kvmsup.bash", directory=directory, words=answers, ready=_READY
    )
    start = on.directory / f"start.{name}"
    start.write_text(f"{script}{before}\n")
    options = {"bash": ("--norc", "--noprofile", "-i"), "zsh": ("-f", "-i")}[name]
    terminal, other = pty.openpty()
    # So wide that no line is broken.
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 60000, 0, 0))
    os.mkfifo(answers)
    os.chmod(on.directory / f"words.{name}", 0o666)
    words = os.open(on.directory / f"words.{name}", os.O_RDWR)
    # The terminal becomes the shell's own, for job control.
    command = on.command("setsid", "--ctty", program, *options)
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=_environment(on.directory))
    os.close(other)
    try:
        shell = _OnTerminal(name, terminal, words)
        os.write(terminal, f". {start}; kvmsup\n".encode())
        shell._answer()
        yield shell
    finally:
        os.close(terminal)
        os.close(words)
        process.kill()
        process.wait()
        answers.unlink()
