# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arithmetic of hugepage pools: never over-committed, and in the end as at the start."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvmsup.plan import pages


@pytest.mark.parametrize(
    ("need", "free", "promised", "grow"),
    [(10, 0, 0, 10), (10, 4, 0, 6), (10, 10, 0, 0), (10, 99, 0, 0), (10, 10, 4, 4), (10, 4, 9, 10), (0, 0, 5, 0)],
)
def test_to_grow(need: int, free: int, promised: int, grow: int) -> None:
    assert pages.to_grow(need, free, promised) == grow


@pytest.mark.parametrize(
    ("needs", "free", "promised", "reserved", "grow"),
    [
        ({0: 10}, {0: 12, 1: 0}, {}, 0, {0: 0}),
        # 8 of 12 are somebody's who has not touched them yet.
        ({0: 10}, {0: 12, 1: 0}, {}, 8, {0: 6}),
        ({0: 10}, {0: 12, 1: 5}, {}, 8, {0: 1}),
        ({0: 10}, {0: 12, 1: 6}, {}, 8, {0: 0}),
        ({0: 10}, {0: 12, 1: 6}, {1: 6}, 8, {0: 6}),
        # What is missing on a node is added there whatever others have free.
        ({0: 10}, {0: 3, 1: 99}, {}, 8, {0: 7}),
        ({0: 10, 1: 12}, {0: 10, 1: 12}, {0: 0, 1: 0}, 5, {0: 0, 1: 5}),
        ({0: 10}, {0: 9}, {0: 4}, 3, {0: 8}),
        ({}, {}, {}, 0, {}),
    ],
)
def test_growth(
    needs: dict[int, int], free: dict[int, int], promised: dict[int, int], reserved: int, grow: dict[int, int]
) -> None:
    assert pages.growth(needs, free, promised, reserved) == grow


@pytest.mark.parametrize(
    ("absorbed", "surplus", "before", "now", "left"),
    [
        (20, 0, 20, 50, 20),  # grown by 30
        (20, 20, 20, 20, 0),  # given back, and in use
        (20, 0, 20, 0, 0),  # given back when its user had gone
        (20, 0, 20, 20, 20),
        (20, 15, 20, 22, 5),  # not all of it had come
        (0, 0, 20, 50, 0),
    ],
)
def test_absorbed_so_far(absorbed: int, surplus: int, before: int, now: int, left: int) -> None:
    assert pages.absorbed_so_far(absorbed, surplus, before, now) == left


@pytest.mark.parametrize(
    ("grown", "free", "promised", "back"),
    [(10, 10, 0, 10), (10, 4, 0, 4), (10, 20, 15, 5), (10, 5, 9, 0), (0, 9, 0, 0), (10, 0, 0, 0)],
)
def test_to_give_back(grown: int, free: int, promised: int, back: int) -> None:
    assert pages.to_give_back(grown, free, promised) == back


@pytest.mark.parametrize(
    ("before", "now", "planned", "grown"),
    [(5, 5, 10, 0), (5, 9, 10, 4), (5, 15, 10, 10), (5, 99, 10, 10), (5, 3, 10, 0), (5, 9, 0, 0)],
)
def test_grown_so_far(before: int, now: int, planned: int, grown: int) -> None:
    assert pages.grown_so_far(before, now, planned) == grown


class Holder(NamedTuple):
    """A guest of the model: pages it was promised, has faulted, and for which the pool was grown."""

    need: int
    faulted: int
    grown: int


class Pool(RuleBasedStateMachine):
    """One pool and guests that start, fault and end in any order, some of them killed in the middle of their setup."""

    @initialize(start=st.integers(0, 20))
    def boot(self, start: int) -> None:
        self.start = self.total = start
        self.holders: list[Holder] = []

    @property
    def free(self) -> int:
        return self.total - sum(holder.faulted for holder in self.holders)

    def promised(self, but: int | None = None) -> int:
        return sum(holder.need - holder.faulted for index, holder in enumerate(self.holders) if index != but)

    @rule(need=st.integers(1, 12))
    def guest_starts(self, need: int) -> None:
        grown = pages.to_grow(need, self.free, self.promised())
        self.total += grown
        self.holders.append(Holder(need, 0, grown))

    @rule(need=st.integers(1, 12), came=st.integers(0, 12))
    def setup_is_killed(self, need: int, came: int) -> None:
        planned, before = pages.to_grow(need, self.free, self.promised()), self.total
        self.total += min(came, planned)
        grown = pages.grown_so_far(before, self.total, planned)
        self.total -= pages.to_give_back(grown, self.free, self.promised())
        assert self.total == before

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def guest_faults(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        holder = self.holders[index]
        more = data.draw(st.integers(0, holder.need - holder.faulted))
        # The kernel gives a fault a page as long as there is one: that there is one is what the arithmetic is for.
        assert more <= self.free
        self.holders[index] = holder._replace(faulted=holder.faulted + more)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def guest_ends(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.end(self.holders.pop(index))

    def end(self, holder: Holder) -> None:
        back = pages.to_give_back(holder.grown, self.free, self.promised())
        assert back == holder.grown
        self.total -= back

    @invariant()
    def never_overcommitted(self) -> None:
        if hasattr(self, "holders"):
            assert self.promised() <= self.free
            assert self.total == self.start + sum(holder.grown for holder in self.holders)

    def teardown(self) -> None:
        """Whoever is left ends too."""
        if hasattr(self, "holders"):
            while self.holders:
                self.end(self.holders.pop())
            assert self.total == self.start


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=25)
