# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person sees while a balloon is on its way: on a real terminal, elsewhere, and without the library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit import terminals

# Two seconds from 2G to 1G and a little back, as guests do.
PROGRAM = """
import sys, time
if sys.argv[1:] == ["without"]:
    sys.modules["tqdm"] = None
from kvmsup.cli import progress
with progress.on_the_way("web", 2 << 30, 1 << 30) as tell:
    for part in (0, 8, 16, 24, 20, 28, 32):
        tell((2 << 30) - part * (32 << 20))
        assert part or "tqdm" not in sys.modules or len(sys.argv) > 1
        time.sleep(0.3)
print("over")
"""
IN_NUMBERS = "web: from 2G to 1G in "


def test_a_bar_on_a_terminal() -> None:
    with terminals.running(PROGRAM, columns=100) as terminal:
        assert terminal.end() == 0
        shown = terminal.shown
        assert "web:  88%" in shown and "896M/1.00G" in shown
        # The bar is gone in the end, and the numbers stay.
        assert [line.strip() for line in terminal.screen()[:2]] == [
            shown[shown.index(IN_NUMBERS) :].split("\r")[0],
            "over",
        ]


def test_in_a_locale_without_more_characters() -> None:
    with terminals.running(PROGRAM, PYTHONIOENCODING="ascii") as terminal:
        assert terminal.end() == 0
        assert "#" in terminal.shown and terminal.shown.isascii()


@pytest.mark.parametrize("words", [(), ("without",)])
def test_numbers_alone_where_nothing_can_be_drawn(words: tuple[str, ...]) -> None:
    begin = "web: 2G, on its way to 1G\r\n"
    with terminals.running(PROGRAM, *words, TERM="xterm" if words else "dumb") as terminal:
        assert terminal.end() == 0
        assert terminal.shown.startswith(IN_NUMBERS if words else begin)
        assert IN_NUMBERS in terminal.shown and "%" not in terminal.shown


def test_a_line_at_the_beginning_and_at_the_end_elsewhere() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=terminals.ROOT, capture_output=True, text=True, check=True)
    first, last = done.stderr.splitlines()
    assert first == "web: 2G, on its way to 1G"
    assert last.startswith(IN_NUMBERS) and last.endswith(" s")
