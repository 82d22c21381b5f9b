# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be so of what look.py has seen: pure functions that return what is not, as sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kvmsup import cpulist

Facts = Mapping[str, Any]
_VCPU = re.compile(r"CPU (\d+)/KVM")


def sound(facts: Facts, base: Facts) -> list[str]:
    """At any moment, whatever is under way; `base` is what was so before the first guest."""
    found = []
    if facts["dead_holder"]:
        found.append(f"the claims' lock is held by process {facts['dead_holder']}, which is dead")
    if facts["waited"] < 0:
        return [*found, "the claims' lock was never free"]
    for check in _CHECKS:
        found += check(facts)
    return found + list(_pools(facts, base)) + list(_ksm(facts, base))


def as_before(facts: Facts, base: Facts) -> list[str]:
    """When the guests have gone that were not there at `base`: the host is as it was."""
    claims, qemus = set(facts["claims"]), set(facts["qemus"])
    found = [f"there is a claim of {guest}" for guest in sorted(claims - set(base["claims"]))]
    found += [f"the claim of {guest} is gone" for guest in sorted(set(base["claims"]) - claims)]
    found += [f"QEMU {pid} of {facts['qemus'][pid]['guest']} runs" for pid in sorted(qemus - set(base["qemus"]))]
    found += [f"QEMU {pid} of {base['qemus'][pid]['guest']} is gone" for pid in sorted(set(base["qemus"]) - qemus)]
    up = {unit: state for unit, state in facts["units"].items() if state not in ("inactive", "failed")}
    found += [f"{unit} is {state}" for unit, state in up.items() if base["units"].get(unit) != state]
    for what in ("links", "pools", "ksm", "fence", "left"):
        if facts[what] != base[what]:
            found.append(f"{what}: {base[what]} before, {facts[what]} now")
    return found


def _held(facts: Facts) -> dict[str, Mapping[str, str]]:
    return {guest: claim for guest, claim in facts["claims"].items() if claim["STATE"] == "held"}


def _own(claim: Mapping[str, str]) -> frozenset[int]:
    """The CPUs that nobody else may use."""
    if claim["PLACEMENT"] != "dedicated":
        return frozenset()
    return cpulist.parse(claim["IDLE_CPUS"]).union(*map(cpulist.parse, claim["VCPU_CPUS"].split()))


def _owners(facts: Facts) -> Iterator[str]:
    owner: dict[int, str] = {}
    for guest, claim in sorted(_held(facts).items()):
        for cpu in sorted(_own(claim)):
            if cpu in owner:
                yield f"CPU {cpu} is dedicated to {owner[cpu]} and to {guest}"
            owner[cpu] = guest


def _running(facts: Facts) -> Iterator[str]:
    """Every QEMU has a claim, and is in the slice of its kind."""
    for pid, one in facts["qemus"].items():
        claim = facts["claims"].get(one["guest"])
        if claim is None or (one["active"] and claim["STATE"] != "held"):
            yield f"QEMU {pid} of {one['guest']} runs and its claim is {claim and claim['STATE']}"
        elif one["slice"] != f"kvm-{claim['PLACEMENT']}.slice":
            yield f"{one['guest']} is {claim['PLACEMENT']} and runs in {one['slice']}"


def _threads(facts: Facts) -> Iterator[str]:
    """vCPUs of guests that have started are where their claims say; shared guests are not on owned CPUs."""
    claims = _held(facts)
    owned: frozenset[int] = frozenset().union(*map(_own, claims.values()))
    for one in facts["qemus"].values():
        claim = claims.get(one["guest"])
        if claim is None or not one["active"]:
            continue
        for name, allowed in one["threads"]:
            yield from _thread(one["guest"], claim, owned, name, cpulist.parse(allowed))


def _thread(
    guest: str, claim: Mapping[str, str], owned: frozenset[int], name: str, allowed: frozenset[int]
) -> Iterator[str]:
    vcpu = _VCPU.fullmatch(name)
    wanted = cpulist.parse(claim["VCPU_CPUS"].split()[int(vcpu[1])]) if vcpu else None
    if claim["PLACEMENT"] == "shared":
        if allowed & owned:
            yield f"{name} of {guest}, which is shared, may run on owned CPU {cpulist.render(allowed & owned)}"
        if wanted is not None and not allowed <= wanted | cpulist.parse(claim["EMULATOR_CPUS"]):
            yield f"{name} of {guest} may run on CPU {cpulist.render(allowed)}, claimed is {cpulist.render(wanted)}"
    elif wanted is not None and allowed != wanted:
        yield f"{name} of {guest} may run on CPU {cpulist.render(allowed)}, claimed is {cpulist.render(wanted)}"


def _memory(facts: Facts) -> Iterator[str]:
    for one in facts["qemus"].values():
        claim = facts["claims"].get(one["guest"])
        if claim and one["active"] and one["pages"] != (claimed := _text_counts(claim["PAGES"])):
            yield f"{one['guest']} has hugepages {one['pages']}, claimed are {claimed}"


def _counts(text: str) -> Counter[str]:
    return Counter({node: int(count) for node, _, count in (word.partition("=") for word in text.split())})


def _text_counts(text: str) -> dict[str, int]:
    return dict(_counts(text))


def _pools(facts: Facts, base: Facts) -> Iterator[str]:
    """Each pool is as large as before, and what the claims have added; a setup that died in the middle may have."""
    sure: Counter[str] = Counter()
    unsure: Counter[str] = Counter()
    for claim in facts["claims"].values():
        (sure if claim["STATE"] == "held" else unsure).update(_counts(claim["PAGES_GROWN"]))
    for node, pool in facts["pools"].items():
        least = base["pools"][node]["nr_hugepages"] + sure[node]
        if not least <= pool["nr_hugepages"] <= least + unsure[node]:
            yield f"node {node} has {pool['nr_hugepages']} pages, by the claims {least} to {least + unsure[node]}"
        if pool["surplus_hugepages"]:
            yield f"node {node} has {pool['surplus_hugepages']} surplus pages"


def _interfaces(claim: Mapping[str, str]) -> list[list[str]]:
    """Kind, MAC, link and what it is at, of each."""
    return [word.partition("=")[2].split(",") for word in claim["NETS"].split()]


def _names(facts: Facts) -> Iterator[str]:
    """What must be one guest's alone: CIDs, MACs and names of links."""
    claims = facts["claims"].values()
    nets = [net for claim in claims for net in _interfaces(claim)]
    alone = {
        "CID": [claim["CID"] for claim in claims if claim["CID"] != "0"],
        "MAC": [mac for _, mac, _, _ in nets],
        "link": [link for _, _, link, _ in nets if link],
    }
    for what, values in alone.items():
        for value, count in Counter(values).items():
            if count > 1:
                yield f"{count} guests have the {what} {value}"


def _owner(alias: str) -> str:
    """The guest in what kvmsup has written down at a link, such as "kvm@web lan"."""
    return alias.split()[0].removeprefix("kvm@")


def _links(facts: Facts) -> Iterator[str]:
    """Every tap is one of a claim, and whoever has started has his, in its bridge."""
    wanted = {
        (guest, link): over
        for guest, claim in facts["claims"].items()
        for kind, _, link, over in _interfaces(claim)
        if kind == "bridge"
    }
    there = {(_owner(one["alias"]), link): one["master"] for link, one in facts["links"].items()}
    for guest, link in sorted(set(there) - set(wanted)):
        yield f"{link} is there for {guest}, which claims none of that name"
    active = {one["guest"] for one in facts["qemus"].values() if one["active"]}
    for (guest, link), over in wanted.items():
        if guest in active and there.get((guest, link)) != over:
            yield f"{link} of {guest} should be in {over}, and is in {there.get((guest, link))}"


def _fence(facts: Facts) -> Iterator[str]:
    """Shared guests are kept off owned CPUs exactly while there are guests of both kinds."""
    claims = facts["claims"].values()
    if any(claim["STATE"] != "held" for claim in claims):
        return  # somebody died before it was settled, or after; whoever comes next settles it
    both = len({claim["PLACEMENT"] for claim in claims}) == 2
    owned: frozenset[int] = frozenset().union(*map(_own, claims))
    wanted = cpulist.parse(facts["present"]) - owned if both else frozenset()
    if cpulist.parse(facts["fence"].replace(" ", ",")) != wanted:
        yield f"the fence is at {facts['fence'] or 'nothing'}, by the claims {cpulist.render(wanted) or 'nothing'}"
    if both and facts["effective"] and cpulist.parse(facts["effective"]) != wanted:
        yield f"shared guests may use CPU {facts['effective']}, by the claims {cpulist.render(wanted)}"


def _ksm(facts: Facts, base: Facts) -> Iterator[str]:
    """Whatever is changed is written down. Read twice, as it may be put back between two looks."""
    changed = facts["ksm"] != base["ksm"] and facts["ksm_again"] != base["ksm"]
    if changed and not facts["left"]["ksm.found"]:
        yield f"KSM is {facts['ksm']}, was {base['ksm']}, and nobody wrote down what was found"


_CHECKS: tuple[Callable[[Facts], Iterator[str]], ...] = (
    _owners,
    _running,
    _threads,
    _memory,
    _names,
    _links,
    _fence,
)
