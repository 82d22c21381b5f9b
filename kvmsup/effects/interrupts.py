# SPDX-License-Identifier: LGPL-2.1-or-later
"""/proc/interrupts and /proc/softirqs: a row for each, a column for each online CPU (filesystems/proc.rst)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmsup.effects import files
from kvmsup.records import NamedTuple


class Row(NamedTuple):
    """`label` is an interrupt's number, or what others are called in short; `words` are what follows the counts."""

    label: str
    counts: Mapping[int, int]  # by CPU
    words: tuple[str, ...]

    @property
    def device(self) -> str:
        """Of an interrupt with a number the devices, behind the controller and its own number there; "" for none."""
        return " ".join(self.words[2:]) if _is_number(self.label) else ""


def _is_number(word: str) -> bool:
    """Whether the kernel can have counted as far: int() refuses thousands of digits."""
    return word.isdecimal() and len(word) <= 20


def rows(path: str) -> Iterator[Row]:
    """Those of the table at `path`; what is counted for all CPUs together, such as ERR, is none of them."""
    try:
        heads, *lines = files.read(path).splitlines()
        cpus = [int(word.removeprefix("CPU")) for word in heads.split()]
    except (OSError, ValueError):
        return
    for line in lines:
        label, _, rest = line.partition(":")
        words = rest.split()
        if len(words) >= len(cpus):
            counted = zip(cpus, words, strict=False)
            counts = {cpu: int(word) for cpu, word in counted if _is_number(word)}
            yield Row(label.strip(), counts, tuple(words[len(cpus) :]))
