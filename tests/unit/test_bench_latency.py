# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest that looks at the clock: its boot sector under a real QEMU, and what is made of its lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.latency import guest
from bench.latency.guest import Line


def line(longest: int, **gaps: int) -> str:
    counts = [gaps.get(f"bit{bit}", 0) for bit in range(32)]
    return " ".join(f"{number:08x}" for number in (*counts, longest))


def test_lines_are_found_among_what_else_is_printed() -> None:
    text = (
        f"SeaBIOS\n{line(9, bit1=1)}\n{line(700, bit5=3, bit9=1)}\n{line(1)[:-1]}\nx {line(1)}\n{line(2, bit0=1)} \n"
    )
    found = guest.lines(text)
    assert [one.longest for one in found] == [700, 2]
    assert (found[0].gaps[5], found[0].gaps[9], sum(found[0].gaps)) == (3, 1, 4)


def test_what_was_lost() -> None:
    gaps = [0] * 32
    gaps[4], gaps[10] = 64, 1
    one = Line(tuple(gaps), 1500)
    assert guest.lost(one, 1024) == 0.5
    assert guest.lost(one, 1025) == 0
    assert (guest.over(one, 1024), guest.over(one, 1)) == (1, 65)


def test_the_guest_counts_each_look(tmp_path: Path) -> None:
    image = tmp_path / "guest.img"
    image.write_bytes(guest.image())
    drive = f"file={image},format=raw,if=ide,readonly=off"
    command = [
        "qemu-system-x86_64",
        "-machine",
        "pc",
        "-display",
        "none",
        "-nodefaults",
        "-serial",
        "stdio",
        "-drive",
        drive,
    ]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    except FileNotFoundError:
        pytest.skip("qemu-system-x86_64 is not installed")
    assert process.stdout
    told: list[str] = []
    try:
        while len(told) < 2:
            text = process.stdout.readline()
            assert text, "QEMU has ended"
            told += [text] if len(text.split()) == 33 else []
    finally:
        process.kill()
        process.wait()
    (found,) = guest.lines("".join(told))
    # A gap of no tick at all has no bit.
    assert 0 < sum(found.gaps) <= 20_000_000
    assert found.longest >> max(bit for bit, count in enumerate(found.gaps) if count) == 1
