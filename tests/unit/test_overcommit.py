# SPDX-License-Identifier: LGPL-2.1-or-later
"""The books of overcommitted memory: what is promised, and what would come of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.effects import usage
from kvmsup.model.ksm import Figures
from kvmsup.model.pressure import HostMemory
from kvmsup.plan.overcommit import Books, Promise, books, glance, shared
from tests.unit import trees
from tests.unit.hosts import claim

G = 1 << 30
NONE = Figures(0, 0, 0, 0, 0, 0.0)


def host(available: int, swap: int = 0) -> HostMemory:
    return HostMemory(64 * G, available, swap, swap, 0, None)


def guest(
    size: int,
    used: int,
    *,
    hugepages: int = 0,
    swapped: int = 0,
    balloonable: int = 0,
    locked: int = 0,
    merged: int | None = 0,
) -> Promise:
    return Promise("web", size, hugepages, used, swapped, balloonable, locked, merged)


def ksm(shared: int, sharing: int) -> Figures:
    """Bytes that were kept, and bytes that were given back."""
    return Figures(shared // 4096, sharing // 4096, 0, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("promises", "merging", "memory", "line"),
    [
        ([], NONE, host(3 * G), "memory: 0M promised · 0M used · if all guests want all of theirs: 3.0G to spare"),
        (
            [guest(8 * G, 2 * G), guest(4 * G, 4 * G)],
            NONE,
            host(10 * G),
            "memory: 12G promised · 6.0G used · if all guests want all of theirs: 4.0G to spare",
        ),
        (
            [guest(8 * G, 2 * G, balloonable=3 * G)],
            NONE,
            host(5 * G, 2 * G),
            "memory: 8.0G promised · 2.0G used · 3.0G balloonable · if all guests want all of theirs:"
            " 1.0G is swapped out",
        ),
        (
            [guest(8 * G, 2 * G)],
            NONE,
            host(4 * G),
            "memory: 8.0G promised · 2.0G used · if all guests want all of theirs: 2.0G is missing, and the kernel"
            " kills the largest guests",
        ),
        (
            # Merged pages are counted twice as used, and would be needed twice.
            [guest(4 * G, 3 * G, merged=2 * G), guest(4 * G, 3 * G, merged=2 * G)],
            ksm(2 * G, 2 * G),
            host(1 * G, 1 * G),
            "memory: 8.0G promised · 6.0G used · 2.0G shared by KSM · if all guests want all of theirs:"
            " 1.0G is swapped out, 2.0G is missing, and the kernel kills the largest guests",
        ),
        (
            # What is swapped out makes room in the swap when it comes back.
            [guest(4 * G, 3 * G, swapped=G)],
            NONE,
            host(0),
            "memory: 4.0G promised · 3.0G used · 1.0G swapped · if all guests want all of theirs: 1.0G is swapped out",
        ),
        (
            [guest(16 * G, 0, hugepages=16 * G)],
            NONE,
            host(2 * G),
            "memory: 16G promised · 16G used · if all guests want all of theirs: 2.0G to spare",
        ),
    ],
)
def test_glance(promises: list[Promise], merging: Figures, memory: HostMemory, line: str) -> None:
    assert glance(books(promises, merging, memory)) == line


@pytest.mark.parametrize(
    ("promises", "merging", "saved"),
    [
        ([], ksm(G, 5 * G), 0),
        # Somebody else has merged 5G: the guests have all that they use to themselves.
        ([guest(4 * G, 3 * G)], ksm(G, 5 * G), 0),
        # Six equal pages of which one was kept; half of them are the guests'.
        ([guest(4 * G, 3 * G, merged=2 * G), guest(4 * G, 3 * G, merged=G)], ksm(G, 5 * G), 5 * G // 2),
        # Not told: no more than it uses.
        ([guest(4 * G, 3 * G, merged=None)], ksm(G, 5 * G), 5 * G // 2),
        ([guest(4 * G, 3 * G, merged=None)], ksm(G, G), G),
    ],
)
def test_what_ksm_saves_of_the_guests_memory(promises: list[Promise], merging: Figures, saved: int) -> None:
    assert shared(promises, merging) == saved
    assert books(promises, merging, host(0)).shared == saved


def test_what_others_have_merged_takes_nothing_from_what_is_to_spare() -> None:
    promises = [guest(8 * G, 2 * G)]
    assert books(promises, ksm(G, 5 * G), host(7 * G)).spare == books(promises, NONE, host(7 * G)).spare == G


def test_locked_memory_is_not_swapped_out() -> None:
    promises = [guest(4 * G, 4 * G, locked=4 * G), guest(4 * G, 3 * G, locked=4 * G), guest(2 * G, 0)]
    found = books(promises, NONE, host(0, 16 * G))
    assert (found.short, found.to_swap) == (3 * G, 2 * G)
    assert books(promises[:2], NONE, host(0, 16 * G)).to_swap == 0


SIZES = st.integers(0, 64).map(lambda number: number * G)


@given(
    st.lists(st.builds(guest, SIZES, SIZES, swapped=SIZES, balloonable=SIZES, merged=st.none() | SIZES), max_size=5),
    st.builds(ksm, SIZES, SIZES),
    SIZES,
    SIZES,
)
def test_the_books_balance(promises: list[Promise], merging: Figures, available: int, swap: int) -> None:
    found: Books = books(promises, merging, host(available, swap))
    assert all(figure >= 0 for figure in found)
    assert not (found.short and found.spare)
    assert found.to_swap <= found.short
    assert found.used <= found.promised
    more = books([*promises, guest(G, 0)], merging, host(available, swap))
    assert more.short - found.short + found.spare - more.spare == G


def test_promise_of_a_running_guest(tmp_path: Path) -> None:
    status = "Name:\tqemu\nVmLck:\t 1024 kB\nRssAnon:\t  2048 kB\nRssFile:\t 900 kB\n"
    status += "RssShmem:\t 1024 kB\nVmSwap:\t 512 kB\nThreads:\t4"
    trees.write(str(tmp_path), "/proc/7/status", status)
    held = claim("web", page_size=2 << 20, pages={0: 3})
    expected = Promise("web", 8 << 20, 6 << 20, 3 << 20, 512 << 10, 0, 1 << 20, None)
    assert usage.promise(str(tmp_path), held, 7, 8 << 20) == expected
    held = claim("web")._replace(balloon=2 << 20)
    assert usage.promise(str(tmp_path), held, 7, 8 << 20).balloonable == 1 << 20
    # QEMU's own memory is locked, too.
    assert usage.promise(str(tmp_path), held, 7, 512 << 10).locked == 512 << 10
    trees.write(str(tmp_path), "/proc/7/ksm_merging_pages", "3")
    assert usage.promise(str(tmp_path), held, 7, 8 << 20).merged == 3 << 12
    # It has ended meanwhile.
    assert usage.promise(str(tmp_path), held, 8, 8 << 20) == Promise("web", 8 << 20, 0, 0, 0, 0, 0, None)
