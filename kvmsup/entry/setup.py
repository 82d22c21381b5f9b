# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm-setup@NAME, start: claim host CPUs and nodes for a guest and reserve its hugepages, before QEMU.

Everything is decided and taken under one lock. The claim is written before the first page is taken, so that whatever
ends this program, the release that follows (or the next setup) knows what to give back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial

from kvmsup import cpulist, sizes
from kvmsup.effects import (
    cgroup,
    claims,
    configs,
    fence,
    hugepages,
    journal,
    kernel,
    kvm,
    ledger,
    readable,
    room,
    running,
    sysfs,
    systemctl,
)
from kvmsup.entry import patience
from kvmsup.entry.request import Request, requested
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model.claim import Backing, Claim, Held
from kvmsup.model.guest import Guest
from kvmsup.plan import agreed, changes, pages, refusals
from kvmsup.plan import placement as placing
from kvmsup.plan.refusals import Taken
from kvmsup.steps import step

# How long to wait for guests that are on their way out: `systemctl stop a; systemctl start b` must just work. It is
# less than the unit's TimeoutStartSec=.
PATIENCE_SECONDS = 60.0
_GLANCE_SECONDS = 0.1
# Hugepages of as much may take more than a second.
_TOLD_BYTES = 1 << 30


def main(name: str, root: str = "") -> int:
    """Set up the guest called `name`; 0, or 1 with the reason in the journal of both its units."""
    try:
        run(name, root)
    except KvmsupError as error:
        journal.tell(root, name, journal.ERROR, str(error), error.catalog or "start-refused")
        return 1
    return 0


def run(name: str, root: str) -> None:
    """Claim and reserve. Raises KvmsupError with everything as it was, or left to the release that follows."""
    step("setup.configuration")
    request = _request(name, root)
    step("setup.host")
    _check_host(request.guest, root)
    found = _backing(root, request.guest)
    refusals.check_apart(found.disks)
    deadline = time.monotonic() + PATIENCE_SECONDS
    tell = partial(journal.tell, root, name, journal.NOTICE, catalog="waits")
    told = False
    while True:
        try:
            step("setup.lock")
            with patience.lock(root, agreed.setup_seconds(request.guest), tell):
                _take(request, found, root)
                step("setup.record")
                return running.write(root, name, changes.flatten(request.guest))
        except Taken as refusal:
            if time.monotonic() > deadline or not _leaving(refusal.holders):
                raise
            if not told:
                tell(f"waiting for {' and '.join(refusal.holders)} to stop: {refusal.what}")
                told = True
            time.sleep(_GLANCE_SECONDS)


def _request(name: str, root: str) -> Request:
    """Raises KvmsupError, also when systemd has loaded other files than there are now."""
    found = requested(name, root)
    if found is None:
        raise _no_file(name, root)
    loaded = os.environ.get(agreed.LOADED)
    if loaded != found.loaded:
        file = configs.guest_file(name)
        what = f"{file} was edited since systemd loaded it" if loaded else f"systemd has not loaded {file} yet"
        if loaded and loaded[:8] == found.loaded[:8]:
            what = f"{configs.HOST_FILE} was edited since systemd loaded it"
        raise HostError(what, "systemctl daemon-reload", "not-loaded")
    return found


def _no_file(name: str, root: str) -> HostError:
    near = configs.nearest(root, name)
    hint = f"did you mean kvm@{near}?" if near else "kvmsup.guest(5) describes the file"
    return HostError(f"there is no guest {name}: no {configs.guest_file(name)}", hint, "no-guest")


def _check_host(guest: Guest, root: str) -> None:
    """What QEMU would only find out later, and say less clearly."""
    if guest.machine.accel == "kvm":
        kvm.ensure(root)
    if guest.inside.ready:
        from kvmsup.effects import vsock  # only guests that speak of themselves need it

        vsock.ensure(root)
    if guest.placement.core_scheduling:
        kernel.check_core_scheduling()
    if guest.placement.isolate:
        kernel.check_isolation()
        fence.check_isolation(root)
    for key, path in (("kernel", guest.machine.kernel), ("initrd", guest.machine.initrd)):
        if path:
            readable.check(f"machine.{key}", path, root)
    if guest.credentials or guest.cloud_init:
        from kvmsup.effects import sources

        sources.check(root, guest)


def _backing(root: str, guest: Guest) -> Backing:
    if not guest.disks and guest.machine.firmware == "bios":
        return Backing((), "", "", "")
    from kvmsup.effects import backing

    return backing.find(root, guest, _is_early)


def _disks(root: str, guest: Guest, found: Backing) -> list[Held]:
    """What no other guest may write to: the disks that are there, and the bases that create is about to copy."""
    if not guest.disks:
        return []
    from kvmsup.effects import backing

    return [*found.disks, *backing.bases(root, guest)]


def _leaving(holders: tuple[str, ...]) -> bool:
    """Whether every one of `holders` is on its way out. While systemd is too busy to say, none is."""
    try:
        return all(standing != ledger.HOLDING for standing in ledger.standings(holders).values())
    except HostError:
        return False


def _is_early() -> bool:
    """Whether the host is still booting. While systemd is too busy to say, it is."""
    try:
        return systemctl.units(["basic.target"])["basic.target"].active != "active"
    except (HostError, KeyError):
        return True


def _take(request: Request, found: Backing, root: str) -> None:
    """Place, reserve and hold; under the lock."""
    name = request.guest.name
    step("setup.claims")
    standing = ledger.sweep(root, claims.read_all(root), keep=name)
    mine = standing.pop(name, None)
    others = list(standing.values())
    refusals.check_disks(name, _disks(root, request.guest, found), others)
    if mine and mine.held and mine.loaded == request.loaded and _there(root, mine, request, others):
        # A restart: what this guest holds is what it would ask for. Of its disks some may have been made since.
        if (mine.disks, mine.aio, mine.firmware, mine.nvram) != found:
            claims.write(root, mine._replace(**found._asdict()))
        return
    step("setup.place")
    free = room.free(root, request.topology.nodes, request.guest.memory.page_size, others)
    placement = placing.place(request.guest, request.host, request.topology, others, free)
    if mine:
        ledger.release(root, mine, others)
    claim = placing.claim(request.guest, placement, request.loaded)
    fence.check(root, [*others, claim])
    _reserve(root, claim._replace(**found._asdict()), others)


def _there(root: str, claim: Claim, request: Request, others: list[Claim]) -> bool:
    """Whether what is claimed can still be had: all CPUs of a dedicated guest, one for each thread of a shared one.

    And its pages, which somebody may have taken out of the pool since. A claim from before memory had CPUs to fill it
    (0.1.0's first days) is made anew.
    """
    if request.guest.filled and not claim.fill:
        return False
    if any(_growth(root, claim, others, _pools(root, claim, others)).values()):
        return False
    online = request.topology.online
    if claim.dedicated:
        return claim.own_cpus.union(claim.emulator, *claim.iothread.values()) <= online
    return all(cpus & online for cpus in (*claim.vcpu, claim.emulator, *claim.iothread.values()))


def _reserve(root: str, claim: Claim, others: list[Claim]) -> None:
    """Write the claim with what is about to be added to the pools, add it, and hold.

    On a shortfall the claim stays as it is: the release that follows a failed setup undoes what it says.
    """
    pools = _pools(root, claim, others)
    grow = _growth(root, claim, others, pools)
    grown = claim._replace(
        grown=grow,
        before={node: pools[node][0].total for node in grow},
        absorbed={node: pools[node][0].surplus for node, count in grow.items() if count and pools[node][0].surplus},
    )
    step("setup.intend")
    claims.write(root, grown)
    step("setup.reserve")
    for node, count in grow.items():
        _grow(root, claim, node, count, others)
    step("setup.fence")
    fence.settle(root, [*others, claim])
    step("setup.interrupts")
    if claim.isolate:
        _clear_cpus(root, claim, others)
    step("setup.hold")
    claims.write(root, grown._replace(held=True))


def _clear_cpus(root: str, claim: Claim, others: list[Claim]) -> None:
    """Have the host's interrupts come elsewhere, and say which do, and which the kernel does not move."""
    from kvmsup.effects import masks  # for guests that are isolated alone

    moved = ", ".join(masks.settle(root, [*others, claim]))
    stuck = ", ".join(f"{one.name} ({one.irq})" for one in masks.stuck(root, claim.isolated))
    told = f"off CPU {cpulist.render(claim.isolated)}: {moved or 'nothing was there'}"
    told += f"; not to be moved: {stuck}" if stuck else ""
    journal.tell(root, claim.guest, journal.NOTICE, told, "cpus-cleared")


def _pools(root: str, claim: Claim, others: list[Claim]) -> dict[int, tuple[hugepages.Pool, int]]:
    """Every node's pool of the claim's page size, and what `others` were promised of it; none with ordinary pages."""
    size = claim.page_size
    nodes = sysfs.nodes(root) if size else []
    there = [node for node in nodes if node in claim.pages or hugepages.has(root, node, size)]
    return {node: hugepages.unpromised(root, node, size, others) for node in there}


def _growth(
    root: str, claim: Claim, others: list[Claim], pools: dict[int, tuple[hugepages.Pool, int]]
) -> dict[int, int]:
    free = {node: pool.free for node, (pool, _) in pools.items()}
    promised = {node: count for node, (_, count) in pools.items()}
    reserved = hugepages.reserved(root, claim.page_size, others) if claim.pages else 0
    return pages.growth(claim.pages, free, promised, reserved)


def _grow(root: str, claim: Claim, node: int, count: int, others: list[Claim]) -> None:
    if count == 0:
        return
    before = {there: hugepages.pool(root, there, claim.page_size) for there in sysfs.nodes(root)}
    free = sysfs.free_memory(root, frozenset((node,)))[node]
    # A size that the node cannot have is not tried: it would drain the node, and everybody on it, before it failed.
    wanted = count * claim.page_size
    with _told(f"making {count} hugepages of {sizes.render(claim.page_size)} on node {node}", wanted):
        came = hugepages.grow(root, node, claim.page_size, count) if wanted <= free else None
    if came is not None and came >= count:
        return
    from kvmsup.effects import numa_maps  # tells who has them

    users = numa_maps.users(root, node, claim.page_size)
    guests = {pid for other in others for pid in cgroup.processes(root, other)}
    short = pages.Shortfall(
        node=node,
        page_size=claim.page_size,
        need=claim.pages[node],
        asked=count,
        came=came,
        totals={there: pool.total for there, pool in before.items()},
        unused=before[node].free,
        free=free,
        guests={other.guest: other.pages[node] for other in others if _shares(other, claim, node)},
        others=[(user.name, user.pid, user.pages) for user in users if user.pid not in guests],
        unmapped=max(0, before[node].total - before[node].free - sum(user.pages for user in users)),
    )
    raise pages.refusal(short)


@contextlib.contextmanager
def _told(what: str, size: int) -> Iterator[None]:
    """Have systemctl status show `what` meanwhile, if that takes long: the kernel does not tell how far it is."""
    if size < _TOLD_BYTES:
        yield
        return
    from kvmsup.effects import notify

    notify.tell(STATUS=what)
    try:
        yield
    finally:
        notify.tell(STATUS="")


def _shares(other: Claim, claim: Claim, node: int) -> bool:
    return other.page_size == claim.page_size and node in other.pages
