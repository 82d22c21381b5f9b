# SPDX-License-Identifier: LGPL-2.1-or-later
"""Masks that are borrowed: off isolated CPUs while there are any, and as they were afterwards, whatever comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmsup.plan.affinities import DEFAULT, Borrowed, Cpus, step

EVERY = frozenset(range(8))
OTHERS = frozenset((0, 1))
CPUS = st.frozensets(st.sampled_from(sorted(EVERY)), min_size=1)
ISOLATED = st.frozensets(st.sampled_from(sorted(EVERY - OTHERS)))
KEYS = st.sampled_from(["watchdog", "irq/1", "irq/24", "irq/33", "rps/eth0/rx-0"])
MASKS = st.dictionaries(KEYS, CPUS).flatmap(lambda found: st.just({DEFAULT: EVERY} | found))


class Host:
    """Masks and a record, as a kernel and a file would keep them."""

    def __init__(self, masks: dict[str, Cpus]) -> None:
        self.masks = dict(masks)
        self.record: dict[str, Borrowed] = {}

    def settle(self, isolated: Cpus, *, killed: int | None = None, refused: frozenset[str] = frozenset()) -> None:
        """Bring all to `isolated`; `killed` after so many writes, with the record as it is written first."""
        found = step(self.masks, self.record, isolated, OTHERS - isolated, EVERY)
        before, self.record = self.record, found.before
        for count, (key, cpus) in enumerate(found.write.items()):
            if count == killed:
                return
            if key not in refused:
                self.masks[key] = cpus
        self.record = found.done(refused & found.write.keys(), before)


@given(MASKS, st.lists(ISOLATED, max_size=4))
def test_all_is_as_it_was_after_any_guests(masks: dict[str, Cpus], guests: list[Cpus]) -> None:
    host = Host(masks)
    for isolated in guests:
        host.settle(isolated)
        assert all(cpus and not cpus & isolated for cpus in host.masks.values())
        # Nothing goes anywhere it was not allowed before, but where nothing else was left.
        assert all(cpus <= masks[key] or cpus == OTHERS for key, cpus in host.masks.items())
    host.settle(frozenset())
    assert host.masks == masks
    assert host.record == {}


@given(MASKS, st.lists(st.tuples(ISOLATED, st.none() | st.integers(0, 6)), max_size=5))
def test_a_kill_in_the_middle_is_made_good_by_the_next(
    masks: dict[str, Cpus], steps: list[tuple[Cpus, int | None]]
) -> None:
    """Whatever guests came and went, and wherever somebody was killed over it."""
    host = Host(masks)
    for isolated, killed in steps:
        host.settle(isolated, killed=killed)
        if killed is None:
            assert all(not cpus & isolated for cpus in host.masks.values())
    host.settle(frozenset(), killed=2)
    host.settle(frozenset())
    assert host.masks == masks


@given(MASKS, ISOLATED, ISOLATED, st.frozensets(KEYS))
def test_what_the_kernel_refuses_is_still_put_back_later(
    masks: dict[str, Cpus], isolated: Cpus, more: Cpus, refused: frozenset[str]
) -> None:
    host = Host(masks)
    host.settle(isolated)
    host.settle(isolated | more, refused=refused)
    host.settle(frozenset(), refused=refused)
    host.settle(frozenset())
    assert host.masks == masks
    assert host.record == {}


def test_a_number_that_another_interrupt_has_now() -> None:
    host = Host({DEFAULT: EVERY, "irq/24": frozenset((2, 3))})
    host.settle(frozenset((2, 3)))
    assert host.masks["irq/24"] == OTHERS
    host.masks["irq/24"] = host.masks[DEFAULT]
    host.settle(frozenset())
    assert host.masks == {DEFAULT: EVERY, "irq/24": EVERY}


@given(MASKS, ISOLATED, ISOLATED, KEYS, CPUS)
def test_what_somebody_else_sets_stays(
    masks: dict[str, Cpus], isolated: Cpus, more: Cpus, key: str, chosen: Cpus
) -> None:
    host = Host(masks)
    host.settle(isolated)
    ours = host.record[key].ours if key in host.record else ()
    born = host.record[DEFAULT].ours if DEFAULT in host.record and key.startswith("irq/") else ()
    host.masks[key] = chosen
    host.settle(isolated | more)
    assert not host.masks[key] & (isolated | more)
    host.settle(frozenset())
    if chosen not in ours and chosen not in born:
        assert host.masks == masks | {key: chosen}


@given(MASKS, ISOLATED.filter(bool))
def test_an_interrupt_that_was_born_meanwhile_gets_what_it_would_have_had(
    masks: dict[str, Cpus], isolated: Cpus
) -> None:
    host = Host(masks)
    host.settle(isolated)
    host.masks["irq/99"] = host.masks[DEFAULT]
    host.settle(isolated | {7})
    assert not host.masks["irq/99"] & (isolated | {7})
    host.settle(frozenset())
    assert host.masks == masks | {"irq/99": EVERY}


def test_one_that_was_like_our_default_all_along_is_left_so() -> None:
    host = Host({DEFAULT: EVERY, "irq/5": frozenset((0, 1, 2, 3))})
    host.settle(frozenset((4, 5, 6, 7)))
    assert host.masks["irq/5"] == host.masks[DEFAULT]
    host.settle(frozenset())
    assert host.masks == {DEFAULT: EVERY, "irq/5": frozenset((0, 1, 2, 3))}


def test_the_kernels_threads_are_put_back_when_the_last_partition_has_gone() -> None:
    """The kernel moves them by itself, and forgets where they were: those on one node's CPUs, such as kswapd."""
    kswapd, kthreadd, late = "thread/82/kswapd0", "thread/2/kthreadd", "thread/900/late"
    host = Host({kswapd: frozenset(range(4)), kthreadd: EVERY})
    host.record = {"rps/eth0/rx-0": Borrowed(EVERY, (OTHERS,))}  # of an interface that is not to be seen
    host.settle(frozenset((2, 3)))
    assert host.record[kswapd] == Borrowed(frozenset(range(4)), (EVERY,))
    assert kthreadd not in host.record
    host.masks = dict.fromkeys((*host.masks, late), EVERY - {2, 3})  # as the kernel does
    host.settle(frozenset((2, 3, 6)))
    assert late not in host.record
    host.masks = dict.fromkeys(host.masks, EVERY)
    host.settle(frozenset())
    assert host.masks == {kswapd: frozenset(range(4)), kthreadd: EVERY, late: EVERY}
    assert host.record == {}


def test_on_older_kernels_each_of_its_threads_is_moved_when_it_is_in_the_way() -> None:
    first, second = "worker/82/kswapd0", "worker/83/kswapd1"
    host = Host({first: frozenset(range(4)), second: frozenset(range(4, 8))})
    host.settle(frozenset((2, 3)))
    host.settle(frozenset((2, 3, 4, 5)))
    assert host.masks == {first: frozenset((0, 1)), second: frozenset((6, 7))}
    host.settle(frozenset())
    assert host.masks == {first: frozenset(range(4)), second: frozenset(range(4, 8))}
