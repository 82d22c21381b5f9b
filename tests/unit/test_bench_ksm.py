# SPDX-License-Identifier: LGPL-2.1-or-later
"""ksmtuned's arithmetic as bench/ksm has it, and what the bench calls dominating."""

from __future__ import annotations

import pytest

from bench.ksm import peers
from bench.ksm.__main__ import dominates
from bench.ksm.peers import GIB, Host, Ksmtuned
from bench.ksm.run import Measured
from kvmsup.model.ksm import Figures


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    found: dict[str, object] = {}
    monkeypatch.setattr(peers, "write", found.__setitem__)
    return found


def host(total: float, resident: float, saved: float = 0) -> Host:
    return Host(int(total * GIB), int(resident * GIB), Figures(0, int(saved * GIB) // 4096, 0, 0, 0, 0.0))


def test_ksmtuned(written: dict[str, object]) -> None:
    rules = Ksmtuned(4 * GIB)
    assert rules.act(0, host(10, 7)) == 60.0  # 7 + 2 < 10, 3 free > 2
    assert written == {"run": 0}
    for pages in (300, 600, 900, 1200, 1250, 1250):
        rules.act(0, host(10, 9))
        assert written == {"run": 1, "pages_to_scan": pages, "sleep_millisecs": 40}
    # Merging does not make RSS smaller: it goes on, only slower, down to its least.
    for pages in (1200, 1150):
        rules.act(0, host(10, 9, saved=5))
        assert written["pages_to_scan"] == pages
    for _ in range(40):
        rules.act(0, host(10, 9, saved=5))
    assert written == {"run": 1, "pages_to_scan": 64, "sleep_millisecs": 40}


@pytest.mark.parametrize(
    ("one", "other", "does"),
    [
        (Measured(100, 1.0, 1.0, 1.0), Measured(100, 1.0, 1.0, 1.0), False),
        (Measured(100, 1.0, 0.9, 1.0), Measured(100, 1.0, 1.0, 1.0), True),
        (Measured(102, 1.0, 1.0, 1.0), Measured(100, 1.0, 1.0, 1.0), True),
        (Measured(102, 1.1, 1.0, 1.0), Measured(100, 1.0, 1.0, 1.0), False),
        (Measured(90, 0.5, 0.5, 1.0), Measured(100, 1.0, 1.0, 1.0), False),
    ],
)
def test_dominating(one: Measured, other: Measured, does: bool) -> None:
    assert dominates(one, other) is does
