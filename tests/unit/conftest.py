# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for every quick test: nothing leaks, and the machine it runs on is not its subject."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from kvmsup import cli
from kvmsup.cli import show
from kvmsup.effects import configs
from kvmsup.entry import stopping
from tests import schema

settings.register_profile("quick", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("long", deadline=None, database=None, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("KVMSUP_HYPOTHESIS", "quick"))


def _descriptors() -> dict[str, str]:
    """What is open, by descriptor; the directory that is being listed is not among them."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass
    return found


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread that was joined may be listed for a moment longer.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= set((task / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a descriptor or a child process behind."""
    for name in ("KVMSUP_FAULT", "KVMSUP_LOADED", "JOURNAL_STREAM", "MAINPID", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    descriptors, children = _descriptors(), _children()
    heard = signal.getsignal(stopping.KILL_SIGNAL)
    yield
    signal.signal(stopping.KILL_SIGNAL, heard)  # attach is deaf to it once it is done
    stopping.Stopping.came = False
    # What earlier tests of the same process had open may well be gone by now.
    assert not {number: what for number, what in _descriptors().items() if descriptors.get(number) != what}
    assert not _children() - children


@pytest.fixture(autouse=True)
def json_is_as_its_schema_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a verb prints for programs, in any test."""
    verbs = {cli.module_of(path.stem): path.stem for path in schema.DIRECTORY.iterdir()}
    as_json = show.as_json

    def checked(value: object) -> None:
        frame = sys._getframe(1)
        while frame.f_globals["__name__"] == show.__name__ and frame.f_back:
            frame = frame.f_back
        schema.hold(verbs[frame.f_globals["__name__"]], value)
        as_json(value)

    monkeypatch.setattr(show, "as_json", checked)


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the guests' files, which is empty."""
    place = tmp_path / "etc"
    place.mkdir()
    monkeypatch.setattr(configs, "DIRECTORY", str(place))
    return place
