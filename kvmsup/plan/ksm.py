# SPDX-License-Identifier: LGPL-2.1-or-later
"""When kernel samepage merging runs and how hard: from the last look at the host, the next settings.

A page is merged in the second scan that finds it unchanged (mm/ksm.c, cmp_and_merge_page), so most of the gain comes
with three full scans. They are made as fast as ksmd can (burst); then it goes on at a rate that hardly costs anything
(slow) until there is new memory to look at. The kernel's own advisor is not used: see design.md, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from kvmsup.model.claim import Claim
from kvmsup.model.ksm import PAGE, Figures, Settings
from kvmsup.model.pressure import HostMemory
from kvmsup.records import NamedTuple

POLICIES = ("never", "pressure", "always")
OFF, WAIT, BURST, SLOW = "off", "wait", "burst", "slow"

# Shares of one CPU that ksmd may use: in a burst beyond its free scans and over bursts as a whole, and in between.
BURST_CAP, SLOW_CAP = 0.3, 0.05
FREE_SCANS = 3
_BURST = Settings(5000, 10)
_BURST_LOOK, _BURST_MOST = 1.0, 600.0  # seconds
_SLOW_LOOK, _SLOW_SCAN = 60.0, 600.0  # seconds from look to look, and a full scan is to take
_SLOW_SLEEP = 200
_TURNS_SEEN = 2  # of work and sleep, from which the work can be told
_PAGES = range(100, 2001)  # at one go while slow
_SLEEPS = range(10, 10001)  # milliseconds
_WAIT_LOOK_NEAR, _WAIT_LOOK_FAR, _PRESSURE_LOOK = 10.0, 30.0, 30.0

# Shares of the memory that is not in hugepages; stalls in percent of the last ten seconds.
_SHORT, _TIGHT, _AMPLE = 0.20, 0.40, 0.30
_STALLING, _CALM = 10.0, 1.0
_CALM_SECONDS = 60.0
_FEW = 4096  # pages whose coming and going means nothing


class Look(NamedTuple):
    """What is true at one moment; `at` is in seconds of time.monotonic(), `resident` in pages."""

    at: float
    guests: frozenset[str]  # those that consent and hold their claim
    resident: int  # of those guests' QEMUs
    ksm: Figures
    memory: HostMemory


class State(NamedTuple):
    """What is remembered from one look to the next."""

    phase: str = OFF
    settings: Settings | None = None
    began: Look | None = None  # the phase
    mark: Look | None = None  # when the last full scan was seen to be over
    last: Look | None = None
    reference: Look | None = None  # the end of the last burst: what has grown since is new
    rest_until: float = 0.0  # until then the last burst is not paid for
    ample_since: float | None = None


class Step(NamedTuple):
    """`state.settings` is what ksmd should have, None to give KSM back as it was found."""

    state: State
    told: str  # for the journal, "" while nothing has changed
    again: float | None  # seconds until the next look; None: when a guest comes or goes


def consenting(claims: Iterable[Claim]) -> frozenset[str]:
    """The guests that hold a claim and consent (memory.ksm = true)."""
    return frozenset(claim.guest for claim in claims if claim.ksm and claim.held)


def step(policy: str, state: State, look: Look) -> Step:
    """What to do now that the host is as `look` tells."""
    if policy == "never" or not look.guests:
        return _off(policy, state, look)
    scanning = state.phase in (BURST, SLOW)
    if policy == "pressure":
        state = state._replace(ample_since=_ample_since(state, look))
        if not (_still_short(state, look) if scanning else _short(look.memory)):
            return _wait(state, look)
    if not scanning:
        return _on(policy, state, look)
    return (_burst if state.phase == BURST else _slow)(policy, state, look)


def can_unmerge(figures: Figures, memory: HostMemory) -> bool:
    """Whether the copies that unmerging makes fit into what is available, with a tenth of all memory to spare."""
    return memory.available - figures.saved > memory.total // 10


def _off(policy: str, state: State, look: Look) -> Step:
    why = "no guest asks for it" if policy != "never" else "the policy is never"
    told = f"KSM is as it was found: {why}{_sum(look)}" if state.settings else ""
    return Step(State(last=look, rest_until=state.rest_until), told, None)


def _wait(state: State, look: Look) -> Step:
    share = available(look.memory)
    told = (
        f"KSM is as it was found: memory is ample again, {share:.0%} available{_sum(look)}" if state.settings else ""
    )
    near = share < _TIGHT or state.settings is not None
    return Step(
        State(phase=WAIT, last=look, reference=state.reference, rest_until=state.rest_until),
        told,
        _WAIT_LOOK_NEAR if near else _WAIT_LOOK_FAR,
    )


def _on(policy: str, state: State, look: Look) -> Step:
    why = f"for {', '.join(sorted(look.guests))}"
    if policy == "pressure":
        why += f": memory is short, {available(look.memory):.0%} available"
    if look.at < state.rest_until:
        return _begin_slow(policy, state, look, f"KSM is on {why}; slowly, as there was a burst just now")
    return _begin_burst(state, look, f"KSM is on {why}")


def _begin_burst(state: State, look: Look, told: str) -> Step:
    begun = state._replace(phase=BURST, settings=_BURST, began=look, mark=look, last=look)
    return Step(begun, told, _BURST_LOOK)


def _burst(policy: str, state: State, look: Look) -> Step:
    assert state.began and state.mark and state.last and state.settings
    scans = look.ksm.full_scans - state.began.ksm.full_scans
    if _flat(state.mark, look, scans) or look.at - state.began.at >= _BURST_MOST:
        used = look.ksm.cpu_seconds - state.began.ksm.cpu_seconds
        paid = state._replace(reference=look, rest_until=max(state.rest_until, state.began.at + used / BURST_CAP))
        seconds = look.at - state.began.at
        told = f"KSM goes on slowly after a burst of {seconds:.0f} s{_sum(look)}, {used:.1f} s of it for this"
        return _begin_slow(policy, paid, look, told)
    settings = state.settings
    if scans >= FREE_SCANS:
        settings = _held(settings, settings, _share(state.last, look), BURST_CAP)
    mark = look if look.ksm.full_scans > state.mark.ksm.full_scans else state.mark
    return Step(state._replace(settings=settings, mark=mark, last=look), "", _BURST_LOOK)


def _flat(mark: Look, look: Look, scans: int) -> bool:
    """Whether the full scans since `mark` have given back next to nothing, of `scans` in this burst."""
    gained = look.ksm.sharing - mark.ksm.sharing
    return scans >= FREE_SCANS and look.ksm.full_scans > mark.ksm.full_scans and gained * 100 <= look.ksm.sharing


def _begin_slow(policy: str, state: State, look: Look, told: str) -> Step:
    settings, reference = _slow_settings(look), state.reference or look
    begun = state._replace(phase=SLOW, settings=settings, began=look, last=look, reference=reference)
    return Step(begun, told, _slow_look(policy, begun, look))


def _slow_settings(look: Look) -> Settings:
    """What makes a full scan of the pages that are known in _SLOW_SCAN seconds, whatever it costs."""
    pages = int(look.ksm.known * _SLOW_SLEEP / 1000 / _SLOW_SCAN)
    return Settings(max(_PAGES[0], min(pages, _PAGES[-1])), _SLOW_SLEEP)


def _slow(policy: str, state: State, look: Look) -> Step:
    assert state.last and state.settings and state.reference
    if (new := _new(state.reference, look)) and look.at >= state.rest_until:
        return _begin_burst(state, look, f"KSM is in a burst for {new}")
    # Whoever was seen asleep only cannot be said to need little: then it may become slower, never faster.
    seen = (look.at - state.last.at) * 1000 >= _TURNS_SEEN * state.settings.sleep
    wanted = _slow_settings(look) if seen else state.settings
    settings = _held(wanted, state.settings, _share(state.last, look), SLOW_CAP)
    return Step(state._replace(settings=settings, last=look), "", _slow_look(policy, state, look))


def _slow_look(policy: str, state: State, look: Look) -> float:
    regular = _PRESSURE_LOOK if policy == "pressure" else _SLOW_LOOK
    waiting = state.reference is not None and _new(state.reference, look) and look.at < state.rest_until
    return max(_BURST_LOOK, min(regular, state.rest_until - look.at)) if waiting else regular


def _new(before: Look, now: Look) -> str:
    """What there is to look at that was not there at the end of the last burst; "" for nothing worth it."""
    if came := now.guests - before.guests:
        return ", ".join(sorted(came))
    if now.resident - before.resident > max(_FEW, before.resident // 10):
        return f"{(now.resident - before.resident) * PAGE >> 20} MiB that guests have taken since"
    loose = now.ksm.unshared + now.ksm.volatile - before.ksm.unshared - before.ksm.volatile
    if loose > max(_FEW, before.ksm.known // 5):
        return f"{loose * PAGE >> 20} MiB that have changed since"
    return ""


def _share(before: Look, now: Look) -> float:
    """Of one CPU that ksmd has had from look to look; 0 where they are too close to tell."""
    seconds = now.at - before.at
    return min(1.0, (now.ksm.cpu_seconds - before.ksm.cpu_seconds) / seconds) if seconds >= _BURST_LOOK / 2 else 0.0


def _held(wanted: Settings, had: Settings, share: float, cap: float) -> Settings:
    """`wanted`, with a sleep that is long enough for `cap`, as ksmd has had `share` of one CPU with what it `had`."""
    busy = min(share, 0.99)
    work = had.sleep * busy / (1 - busy) * wanted.pages / had.pages  # milliseconds from sleep to sleep
    enough = math.ceil(work * (1 - cap) / cap)
    return wanted._replace(sleep=min(max(wanted.sleep, enough), _SLEEPS[-1]))


def available(memory: HostMemory) -> float:
    """The share that is available of the memory that is not in hugepages."""
    return memory.available / max(1, memory.total - memory.hugepages)


def _short(memory: HostMemory) -> bool:
    share = available(memory)
    stalls = memory.stall is not None and memory.stall.some >= _STALLING
    return share < _SHORT or (share < _TIGHT and stalls)


def _still_short(state: State, look: Look) -> bool:
    return state.ample_since is None or look.at - state.ample_since < _CALM_SECONDS


def _ample_since(state: State, look: Look) -> float | None:
    calm = look.memory.stall is None or look.memory.stall.some < _CALM
    if available(look.memory) < _AMPLE or not calm:
        return None
    return look.at if state.ample_since is None else state.ample_since


def _sum(look: Look) -> str:
    return f"; {look.ksm.saved >> 20} MiB saved, ksmd has used {look.ksm.cpu_seconds:.1f} s of CPU"
