# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU models: what a guest asks for against what QEMU knows and the host can give; pure.

QEMU alone knows: the models and their versions depend on its own version and on the machine type, what is usable on
the host, its KVM and its microcode. kvmsup.effects.models asks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kvmsup.model.guest import Cpu
from kvmsup.model.table import Path, Problem, nearest
from kvmsup.records import NamedTuple

# They are what the host or QEMU has, and so differ from host to host; "base" has no feature at all.
SPECIAL = ("host", "max", "base")

_VERSION = re.compile(r"-v([0-9]+)$")
_VENDORS_WITH_TOPOEXT = ("AuthenticAMD", "HygonGenuine")
_MOST_SUGGESTED = 3
# More than that is no longer the model that was asked for.
_MOST_LEFT_OUT = 4


class CpuModel(NamedTuple):
    """One name for -cpu. `alias_of` is the version that it stands for with this machine type, or "".

    `missing` are the features that the host (or QEMU's emulation) cannot give it.
    """

    name: str
    alias_of: str
    missing: tuple[str, ...]
    deprecated: bool
    migration_safe: bool

    @property
    def usable(self) -> bool:
        return not self.missing


class Catalogue(NamedTuple):
    """What QEMU knows with one machine type and one accelerator; `features` is every name that + and - take."""

    machine: str
    accel: str  # kvm | tcg
    models: Mapping[str, CpuModel]
    features: frozenset[str]


class Given(NamedTuple):
    """What a guest's vCPU has been given: the features it lacks of those asked for, and whether it shows SMT."""

    model: str
    missing: tuple[str, ...]
    vendor: str
    topoext: bool


class Running(NamedTuple):
    """The CPU of a guest that runs: as its QEMU was told, and what of that its vCPUs lack."""

    model: str
    features: tuple[str, ...]  # each "+name" or "-name"
    missing: tuple[str, ...]


def told(argument: str) -> tuple[str, tuple[str, ...]]:
    """Model and features of -cpu's `argument`, without QEMU's own switches such as enforce=on."""
    model, *rest = argument.split(",")
    return model, tuple(word for word in rest if word[:1] in ("+", "-"))


def plain(feature: str) -> str:
    """The name of "+feature" as QEMU spells it (target/i386/cpu.c, feat2prop: an underscore is a dash)."""
    return feature.lstrip("+-").replace("_", "-")


def worth_asking(cpu: Cpu) -> bool:
    """Whether the guest asks for anything that QEMU or the host could refuse."""
    return cpu.model not in SPECIAL or bool(cpu.features) or cpu.threads > 1


def closest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that `word` most likely means, whatever its case; "" when none is near."""
    by_fold = {name.casefold(): name for name in known}
    folded = word.casefold()
    return by_fold.get(folded) or by_fold.get(nearest(folded, list(by_fold)), "")


def unknown(catalogue: Catalogue, cpu: Cpu) -> Iterator[Problem]:
    """Names of models and features that this QEMU does not have."""
    if cpu.model not in catalogue.models:
        near = closest(cpu.model, catalogue.models)
        hint = f"did you mean {near}? kvmsup cpu-models lists them all" if near else "kvmsup cpu-models lists them"
        yield _error(("cpu", "model"), f"QEMU has no CPU model {cpu.model}", hint)
    for index, feature in enumerate(cpu.features):
        if plain(feature) not in catalogue.features:
            near = closest(plain(feature), catalogue.features)
            hint = f'did you mean "{feature[0]}{near}"?' if near else "qemu-system-x86_64 -cpu help lists them"
            yield _error(("cpu", "features", index), f"QEMU has no CPU feature {feature[1:]}", hint)


def refused(catalogue: Catalogue, cpu: Cpu, given: Given, relatives: Sequence[str]) -> Iterator[Problem]:
    """What the host cannot give: by the features that were added, then by the model itself."""
    giver = "this host" if catalogue.accel == "kvm" else "QEMU's emulation"
    own = set(catalogue.models[cpu.model].missing)
    added = {plain(feature): index for index, feature in enumerate(cpu.features) if feature[0] == "+"}
    for name in (name for name in given.missing if name not in own):
        if name in added:
            yield _error(("cpu", "features", added[name]), f"{giver} has no {name}", "leave it out")
        else:  # it was added by another of its names, such as sse3 for pni
            yield _error(("cpu", "features"), f"{giver} has no {name}", "leave out what asks for it")
    if lost := [name for name in given.missing if name in own]:
        what = f"{cpu.model} needs what {giver} lacks: {', '.join(lost)}"
        kept = [feature for feature in cpu.features if plain(feature) not in given.missing]
        yield _error(("cpu", "model"), what, _way_out(catalogue.accel, kept, lost, relatives))


def _way_out(accel: str, kept: Sequence[str], lost: Sequence[str], relatives: Sequence[str]) -> str:
    """What to write instead of a model of which `lost` is missing, beside the features `kept`."""
    always = "host" if accel == "kvm" else "max"
    ways = [f'model = "{relatives[0] if relatives else always}"']
    if relatives[1:]:
        ways[0] += f" (or {', '.join(relatives[1:])})"
    if len(lost) <= _MOST_LEFT_OUT:
        without = [*kept, *(f"-{name}" for name in lost)]
        ways.append(f"features = {_list(without)}")
    return f"{', or '.join(ways)}; kvmsup cpu-models --usable lists what runs here"


def _list(features: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{feature}"' for feature in features) + "]"


def advice(catalogue: Catalogue, cpu: Cpu, given: Given) -> Iterator[Problem]:
    """What is legal but unwise, or good to know."""
    model = catalogue.models[cpu.model]
    if model.deprecated:
        hint = "kvmsup cpu-models lists the others"
        yield Problem(("cpu", "model"), f"QEMU will drop {cpu.model}", hint, False, "warning")
    if model.alias_of:
        what = f"{cpu.model} is {model.alias_of} with {catalogue.machine}"
        yield Problem(("cpu", "model"), what, "", False, "note")
    if cpu.threads > 1 and given.vendor in _VENDORS_WITH_TOPOEXT and not given.topoext:
        # target/i386/cpu.c, x86_cpu_realizefn: "This family of AMD CPU doesn't support hyperthreading".
        what = f"an AMD CPU shows its guest no SMT without topoext: {cpu.threads} threads will look like cores"
        hint = f"features = {_list([*cpu.features, '+topoext'])}"
        yield Problem(("cpu", "threads"), what, hint, False, "warning")


def _error(path: Path, what: str, hint: str) -> Problem:
    return Problem(path, what, hint, False, "error")


def family(name: str) -> str:
    """`name` without its version: EPYC-Milan-v2 is an EPYC-Milan."""
    return _VERSION.sub("", name)


def _version(name: str) -> int:
    found = _VERSION.search(name)
    return int(found[1]) if found else 0


def in_order(known: Iterable[CpuModel]) -> list[CpuModel]:
    """For people: the special ones, then family by family, each with its versions behind it."""

    def key(model: CpuModel) -> tuple[bool, str, int, str]:
        return (model.name not in SPECIAL, family(model.name).casefold(), _version(model.name), model.name)

    return sorted(known, key=key)


def candidates(catalogue: Catalogue, features: Iterable[str]) -> list[str]:
    """The versions that the host can run, where `features` take some away from any model."""
    removed = {plain(feature) for feature in features if feature[0] == "-"}
    return [
        model.name
        for model in catalogue.models.values()
        if removed.issuperset(model.missing) and _version(model.name) and not model.deprecated
    ]


def relatives(name: str, features: Mapping[str, frozenset[str]]) -> list[str]:
    """Those models of `features` that lose the least of the model `name`, the best of each family, best first.

    What a model loses and what it adds is what makes it near: that is read from the features, so that it holds for
    models which are younger than this program. A relative has at least half of what was asked for.
    """
    asked = features[name]

    def rank(other: str) -> tuple[int, int, int, str]:
        return (len(asked - features[other]), len(features[other] - asked), -_version(other), other)

    best: dict[str, str] = {}
    for other in sorted(features, key=rank):
        if other != name and 2 * len(asked & features[other]) >= len(asked):
            best.setdefault(family(other), other)
    return list(best.values())[:_MOST_SUGGESTED]
