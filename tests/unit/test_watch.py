# SPDX-License-Identifier: LGPL-2.1-or-later
"""--watch, on a real terminal and into real pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import time

import pytest

from kvmsup.cli import watch
from tests import schema
from tests.unit import terminals

# What is looked at counts its looks; the third one fails, as of a guest that ends.
PROGRAM = """
import itertools, sys
from kvmsup import cli
from kvmsup.cli import listing, show
from kvmsup.errors import KvmsupError
count = itertools.count(1)
def look():
    number = next(count)
    if number == 3:
        raise KvmsupError("it has ended", "look again")
    return show.Look({"look": number}, [f"look {number}", show.paint("active", "a" * 100), *map(str, range(30))])
listing.at_once = listing.in_full = look
print("ready", file=sys.stderr)
sys.exit(cli.main(sys.argv[1:]))
"""
# Whoever runs tests in the background of a shell has them ignore SIGINT, and with them what they start.
PYTHON = ["env", "--default-signal=INT", sys.executable]
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"


def test_a_terminal_is_drawn_over_in_place_and_left_as_it_was() -> None:
    with terminals.running(PROGRAM, "list", "--interval", "0.1") as terminal:
        terminal.until("ready")
        before = terminal.mode()
        at = terminal.until("look 1")
        assert "\x1b[2J" not in terminal.shown
        at = terminal.until("hint: look again", at)
        at = terminal.until("\x1b[?2026l", terminal.until("look 4", at))
        lines = terminal.screen()
        assert "q or Ctrl-C ends" in lines[0] and lines[1].startswith("look ")
        assert lines[2] == "a" * 80
        assert lines[-1] == "(10 more lines)" and len(lines) == 24
        changed = terminal.mode()
        assert not int(str(changed[3])) & (termios.ECHO | termios.ICANON)
        terminal.press(b"x")  # no key of ours
        terminal.until("look 6", at)
        terminal.press(b"\x03")
        assert terminal.end() == 0
        assert terminal.shown.count(ENTER) == terminal.shown.count(LEAVE) == 1
        assert terminal.shown.endswith(LEAVE)
        assert "Traceback" not in terminal.shown
    assert before[3] != changed[3]


def test_the_mode_is_put_back() -> None:
    program = PROGRAM + "\n"
    shell = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]]); print('over'); input()"
    with terminals.running(shell, program, "list", "--watch") as terminal:
        terminal.until("ready")
        before = terminal.mode()
        terminal.until("look 1")
        terminal.press(b"q")
        terminal.until("over")
        assert terminal.mode() == before


def test_a_new_size_is_drawn_at_once() -> None:
    with terminals.running(PROGRAM, "list", "--interval", "3600", columns=90) as terminal:
        at = terminal.until("\x1b[?2026l", terminal.until("look 1"))
        assert terminal.screen()[2] == "a" * 90
        terminal.resize(12, 40)
        terminal.until("\x1b[?2026l", terminal.until("look 2", at))
        terminal.shown = terminal.shown[at:]
        lines = terminal.screen()
        assert lines[2] == "a" * 40
        assert lines[-1] == "(22 more lines)"
        terminal.press(b"q")
        assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_in_order(number: signal.Signals) -> None:
    with terminals.running(PROGRAM, "list", "--watch") as terminal:
        terminal.until("look 1")
        os.kill(terminal.pid, number)
        assert terminal.end() == 128 + number
        assert terminal.shown.endswith(LEAVE)


def test_it_can_be_stopped_and_goes_on() -> None:
    with terminals.running(PROGRAM, "list", "--interval", "0.1") as terminal:
        at = terminal.until("look 1")
        os.kill(terminal.pid, signal.SIGTSTP)  # an orphaned process group is not stopped by Ctrl-Z itself (termios(3))
        at = terminal.until(LEAVE, at)
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.until("look 5", terminal.until(ENTER, at))
        terminal.press(b"q")
        assert terminal.end() == 0


def test_a_terminal_that_does_not_know_its_size() -> None:
    with terminals.running(PROGRAM, "list", "--interval", "0.1", rows=0, columns=0) as terminal:
        terminal.rows = 24
        terminal.until("\x1b[?2026l", terminal.until("look 2"))
        assert terminal.screen()[-1] == "(10 more lines)"
        terminal.press(b"q")
        assert terminal.end() == 0


def test_a_terminal_that_goes_without_a_word() -> None:
    """A program that does not hear of it: it may have been told not to."""
    deaf = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nsignal.signal = lambda *_: None\n"
    with terminals.running(deaf + PROGRAM, "list", "--interval", "0.1") as terminal:
        terminal.until("look 2")
        pid, terminal.pid = terminal.pid, 0
        os.close(terminal.master)
        terminal.master = os.open(os.devnull, os.O_RDONLY)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP


def test_a_line_of_json_each_time() -> None:
    command = [*PYTHON, "-c", PROGRAM, "list", "--interval", "0.1", "--json"]
    with subprocess.Popen(
        command, cwd=terminals.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        found = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        said = process.stderr.read()
    assert [one["look"] for one in found] == [1, 2, 4, 5]
    assert said == "ready\nkvmsup: it has ended\n  hint: look again\n"


def test_a_reader_that_has_seen_enough() -> None:
    command = [sys.executable, "-c", PROGRAM, "list", "--interval", "0.1", "--json"]
    with subprocess.Popen(
        command, cwd=terminals.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("verb", [["list"], ["status", "web"], ["topology"]])
def test_into_a_pipe_it_is_refused_with_what_to_do(verb: list[str]) -> None:
    program = "import sys; from kvmsup.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *verb, "--watch"]
    done = subprocess.run(command, cwd=terminals.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "kvmsup: watching draws on a terminal, and standard output is none that can be drawn on\n"
        "  hint: with --json each look is a line; watch(1) repeats any command\n"
    )


def test_a_dumb_terminal_is_none() -> None:
    with terminals.running(PROGRAM, "list", "--watch", TERM="dumb") as terminal:
        assert terminal.end() == 1
        assert "\x1b" not in terminal.shown


def test_a_real_topology_again_and_again() -> None:
    program = "import sys; from kvmsup.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [*PYTHON, "-c", program, "topology", "--interval", "0.1", "--json"]
    with subprocess.Popen(command, cwd=terminals.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in range(3):
            schema.hold("topology", json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize("seconds", ["0", "0.05", "nan", "inf", "x", "-1", "86401"])
def test_an_interval_that_is_none(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    from kvmsup import cli

    with pytest.raises(SystemExit) as caught:
        cli.main(["list", f"--interval={seconds}"])
    assert caught.value.code == 2
    assert "no number of seconds from 0.1 to 86400" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "columns", "left"),
    [
        ("abcdef", 3, "abc"),
        ("abc", 3, "abc"),
        ("\x1b[31mabcdef\x1b[0mg", 3, "\x1b[31mabc\x1b[0m"),
        ("ab\x1b[31mcd\x1b[0mef", 5, "ab\x1b[31mcd\x1b[0me"),
        ("", 3, ""),
    ],
)
def test_a_line_is_cut_to_the_terminal_and_colours_take_no_room(line: str, columns: int, left: str) -> None:
    assert watch._cut(line, columns) == left


def test_looks_are_in_step_but_never_without_a_pause() -> None:
    now = time.monotonic()
    assert watch._next(now, 2.0) == now + 2.0
    assert watch._next(now - 60, 2.0) >= now + 1.0
