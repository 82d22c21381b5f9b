# SPDX-License-Identifier: LGPL-2.1-or-later
"""The CPU of a libvirt domain → [cpu]: how many, in which topology, and what they can do; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmsup.errors import KvmsupError
from kvmsup.model import config
from kvmsup.plan.libvirt_values import whole
from kvmsup.plan.libvirt_xml import Node, short
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
# What QEMU calls otherwise, or sets by itself (libvirt's src/qemu/qemu_capabilities.c).
_RENAMED = {"pclmuldq": "pclmulqdq"}
_QEMUS_OWN = ("osxsave", "ospke")
# <hyperv> and <kvm>: what is on or off, and is a property of QEMU's CPU. What has a value is not among them.
_HYPERV = (
    *("relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "reset", "frequencies", "reenlightenment"),
    *("tlbflush", "ipi", "evmcs", "avic", "emsr_bitmap", "xmm_input"),
)
_KVM = {"hint-dedicated": "kvm-hint-dedicated", "poll-control": "kvm-poll-control", "pv-ipi": "kvm-pv-ipi"}


class Processor(NamedTuple):
    """What becomes [cpu]; `vcpus` of `maxcpus` are there at the start."""

    values: dict[str, Any]
    vcpus: int
    maxcpus: int
    threads: int


def read(domain: Node, *, emulated: bool) -> Processor:
    """The guest's CPUs. Raises KvmsupError where nobody can tell how many there are."""
    vcpu = domain.at("vcpu")
    text = vcpu.text() or "1"
    most = whole(text, 1, config.MOST_VCPUS)
    if not most:
        raise KvmsupError(f'vcpu: "{short(text)}" is no number of vCPUs from 1 to {config.MOST_VCPUS}')
    current = whole(vcpu.attribute("current") or text, 1, most)
    if not current:
        vcpu.part_lost("/@current", f"is no number from 1 to {most}")
    vcpus = current or most
    cpu = domain.at("cpu")
    model = _model(domain, cpu, emulated)
    features = list(dict.fromkeys(_features(domain, cpu, emulated)))[: config.MOST_FEATURES]
    shape = _shape(cpu.at("topology"), most)
    values: dict[str, Any] = {"model": model}
    values |= {"features": features} if features else {}
    values |= {"vcpus": vcpus} | ({"maxcpus": most} if vcpus != most else {}) | shape
    return Processor(values, vcpus, most, shape.get("threads", 1))


def _model(domain: Node, cpu: Node, emulated: bool) -> str:
    all_of_it = "max" if emulated else "host"
    mode, model = cpu.attribute("mode"), cpu.at("model")
    name = model.text()
    if mode == "host-model":
        cpu.changed(
            'the guest gets all of the host\'s CPU, model = "host"; `kvmsup cpu-models` lists others', "/@mode"
        )
    elif mode in ("", "custom") and name:
        if re.fullmatch(_WORD, name):
            return all_of_it if name == "host" else name
        model.lost(f'is no name of a model; the guest gets "{all_of_it}"')
    elif mode in ("", "custom"):
        domain.changed(f'without a model QEMU has one that can little (qemu64); the guest gets "{all_of_it}"', "/cpu")
    elif mode == "maximum":
        return "max"
    elif mode != "host-passthrough":
        cpu.part_lost("/@mode", f'is no mode; the guest gets "{all_of_it}"')
    return all_of_it


def _shape(topology: Node, most: int) -> dict[str, int]:
    """Without one libvirt makes each vCPU a socket; the guest keeps what it had."""
    alone = {"sockets": most, "cores": 1} if most > 1 else {}
    if not topology.there:
        return alone
    counts = {
        key: whole(topology.attribute(key) or "1", 1, config.MOST_VCPUS)
        for key in ("sockets", "dies", "cores", "threads")
    }
    product = 1
    for count in counts.values():
        product *= count or 0
    if product != most:
        topology.lost(f"is not one of {most} vCPUs: each is a socket")
        return alone
    return {key: count for key, count in counts.items() if count and (count > 1 or key != "dies")}


def _features(domain: Node, cpu: Node, emulated: bool) -> Iterator[str]:
    seen: set[str] = set()
    for feature in cpu.all("feature"):
        name, policy = feature.attribute("name"), feature.attribute("policy") or "require"
        name = _RENAMED.get(name, name)
        plain = name.replace("_", "-")
        sign = {"require": "+", "force": "+", "disable": "-", "forbid": "-"}.get(policy)
        if not re.fullmatch(_WORD, name) or plain in seen:
            feature.lost("is no name of a feature, or is there twice")
        elif name in _QEMUS_OWN:
            feature.passed()
        elif not sign:
            feature.lost(f'is there where the host has it, elsewhere not; features = ["+{name}"] asks for it')
        else:
            seen.add(plain)
            yield f"{sign}{name}"
    for name in _of_hypervisor(domain, emulated):
        if name[1:] not in seen:
            yield name


def _of_hypervisor(domain: Node, emulated: bool) -> Iterator[str]:
    """What KVM and QEMU show the guest for its own good: features of QEMU's CPU, too."""
    features = domain.at("features")
    if emulated:
        return
    hyperv = features.at("hyperv")
    if hyperv.attribute("mode") == "passthrough":
        yield "+hv-passthrough"
    for name in _HYPERV:
        if hyperv.at(name).attribute("state") == "on":
            yield f"+hv-{name.replace('_', '-')}"
    kvm = features.at("kvm")
    hidden = kvm.at("hidden")
    if hidden.attribute("state") == "on":
        yield "-kvm"
    for name, ours in _KVM.items():
        if kvm.at(name).attribute("state") == "on":
            yield f"+{ours}"
    pmu = features.at("pmu").attribute("state")
    if pmu in ("on", "off"):
        yield f"{'+' if pmu == 'on' else '-'}pmu"
    for timer in domain.at("clock").all("timer"):
        if timer.attribute("name") == "hypervclock":
            timer.passed()
            if timer.attribute("present") == "yes":
                yield "+hv-time"
        else:
            timer.lost("timers are QEMU's default")
