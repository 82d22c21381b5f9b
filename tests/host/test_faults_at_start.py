# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kill -9, or an error, at every named step of setup and attach; after each, nothing is left behind."""

from __future__ import annotations

import pytest

from kvmsup.steps import STEPS
from tests.host import guests
from tests.host.faults import ELSEWHERE, RELEASING, STARTING, STOPPING, cases, inject, prepare, the_next_start_works
from tests.lab.host import Host


@pytest.fixture(scope="module")
def tiny(host: Host) -> Host:
    return prepare(host)


def test_every_step_belongs_to_a_part_that_is_tested() -> None:
    assert sorted(STARTING + STOPPING + RELEASING + ELSEWHERE) == sorted(STEPS)


@pytest.mark.parametrize(("step", "how"), cases(STARTING))
def test_a_start_that_fails_leaves_nothing(tiny: Host, step: str, how: str) -> None:
    inject(tiny, f"{step}:{how}")
    started = guests.start(tiny, "tiny", check=False)
    assert started.rc == 1, started
    guests.released(tiny, "tiny")
    assert guests.pages(tiny) == (0, 0)
    assert guests.leftovers(tiny) == []
    if how == "error":
        assert f"a fault was injected at the step {step} (KVMSUP_FAULT)" in guests.said(tiny, "tiny")


def test_the_next_start_works(tiny: Host) -> None:
    the_next_start_works(tiny)
