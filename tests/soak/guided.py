# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile configuration, guided by what of kvmsup it has come to: python3 -m tests.soak.guided DIRECTORY [OPTION…]

The grammar knows what a file can look like; this knows nothing, and keeps in DIRECTORY every input that has come to a
branch to which none had come before. The options are libFuzzer's: -runs=10000, -max_total_time=60; the name of a file
in place of DIRECTORY is that input again.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.soak import grammar  # which has nothing of kvmsup: what is imported before main() gives no guidance
from tests.tree import ROOT

GOLDEN = ROOT / "tests/golden"
# Of the grammar's inputs, for a directory that has none: guests as one meets them are the goldens'.
_SEEDS = 500
_LONGEST = 4096
_STAT = re.compile(r"^stat::number_of_executed_units:\s+(\d+)$", re.MULTILINE)
_COVERAGE = re.compile(r"\bcov: (\d+) ")


class Broken(RuntimeError):
    """libFuzzer has tried nothing; the text has its own words."""


class Report(NamedTuple):
    """What libFuzzer says at its end: inputs that were tried, and branches that they have come to."""

    inputs: int
    branches: int


def plant(corpus: Path) -> None:
    """Fill an empty directory with inputs to begin with."""
    corpus.mkdir(parents=True, exist_ok=True)
    if any(corpus.iterdir()):
        return
    for number, path in enumerate(sorted(GOLDEN.rglob("*.toml"))):
        (corpus / f"golden-{number}").write_bytes(path.read_bytes())
    for number in range(_SEEDS):
        (corpus / f"grammar-{number}").write_bytes(grammar.guest(Random(number)))


def run(corpus: Path, failures: Path, seed: int, count: int) -> tuple[Report, str]:
    """Try `count` inputs; one that goes wrong is put into `failures`, and why is returned, else "". Raises Broken."""
    plant(corpus)
    failures.mkdir(parents=True, exist_ok=True)
    words = failures / "words"
    words.write_text("".join(f'"{word}"\n' for word in vocabulary()))
    options = [f"-runs={count}", f"-seed={seed}", f"-max_len={_LONGEST}", f"-dict={words}", "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.soak.guided", str(corpus), *options, f"-artifact_prefix={failures}/"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    text = done.stdout + done.stderr
    if not any(found := report(text)):
        raise Broken(text[-4000:])
    return found, why(text) if done.returncode else ""


def why(text: str) -> str:
    """What Python said of the input that went wrong; libFuzzer's last words where it was not Python."""
    _, _, traceback = text.partition("Uncaught Python exception: ===\n")
    return traceback[:4000] or text[-4000:]


def report(text: str) -> Report:
    """From libFuzzer's output; zeros where nothing was tried."""
    executed, covered = _STAT.search(text), _COVERAGE.findall(text)
    return Report(int(executed[1]) if executed else 0, int(covered[-1]) if covered else 0)


def vocabulary() -> list[str]:
    """The words of the format, of which mutations are made, too."""
    from kvmsup.model import config

    sections = {section.partition(".")[0] for section in config.GUEST_KEYS} - {""}
    return sorted(sections.union(*config.GUEST_KEYS.values()))


def main() -> None:
    """Try inputs until libFuzzer has enough, or one goes wrong."""
    import atheris

    with atheris.instrument_imports(include=["kvmsup", "tomllib"]):
        from tests.soak import fuzz

    def tried(data: bytes) -> None:
        if failures := fuzz.given(data):
            raise AssertionError("\n".join(failure.what for failure in failures))

    atheris.Setup(sys.argv, tried)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
