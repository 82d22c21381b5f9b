# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bench/speed makes of figures: ratios of neighbours, and which promises are kept."""

from __future__ import annotations

from typing import Any

from bench.speed import report, targets
from bench.speed.inside import guests, units
from bench.speed.inside.guests import Shape
from tests.tree import ROOT


def runs(**peers: list[float]) -> dict[str, list[dict[str, float]]]:
    """By peer, runs whose every figure is the same."""
    return {who: [{"start": one, "end": one, "cpu": one} for one in values] for who, values in peers.items()}


def test_a_ratio_is_of_runs_that_followed_one_another() -> None:
    """The machine was ten times as slow in the second round, for both."""
    found = runs(kvmsup=[1.0, 10.0, 3.0], libvirt=[2.0, 20.0, 2.0])
    assert targets.ratio(found, "start", "kvmsup", "libvirt") == 0.5


def test_a_promise_is_met_up_to_its_bound() -> None:
    assert targets.Target("a", "b", 0.3, 0.3).met
    assert not targets.Target("a", "b", 0.301, 0.3).met


def starts(ours: float) -> dict[str, Any]:
    shape = runs(kvmsup=[ours], libvirt=[400.0], bare=[60.0])
    return dict.fromkeys(("plain", "claimed", "pages"), shape)


def test_each_start_is_held_to_both_bounds() -> None:
    found = list(targets.all_of({"starts": starts(121.0)}))
    assert [one.met for one in found if one.beside == "`virsh start`"] == [False] * 3
    assert [one.met for one in found if one.beside.startswith("QEMU")] == [False] * 3
    assert all(one.met for one in targets.all_of({"starts": starts(119.0)}))


def test_what_is_not_met_is_said_so() -> None:
    text = report.promises({"starts": starts(125.0)})
    assert "| a start, four vCPUs pinned | `virsh start` | 0.31 × | 0.3 × | **no** |" in text
    assert "| an end at once | `virsh destroy` | 0.31 × | 1 × | yes |" in text


def test_the_last_starts_are_held_against_the_first() -> None:
    each = [10.0] * 5 + [11.0] * 40 + [20.0] * 5
    crowd = {"50": {"kvmsup": [{"one by one": {"each": each}}]}}
    assert targets.growth(crowd)[:3] == ("the last starts of 50", "the first of them", 2.0)


def test_both_languages_ask_for_the_same_pins() -> None:
    shape = Shape(64, {0: 3, 1: 1}, dedicated=True, hugepages=True)
    text, xml = guests.toml(shape), guests.domain("x", shape)
    assert '0 = "3"\n1 = "1"\n' in text and 'hugepages = "2M"' in text
    assert "<vcpupin vcpu='0' cpuset='3'/><vcpupin vcpu='1' cpuset='1'/>" in xml and "<hugepages/>" in xml


def test_an_empty_unit_keeps_its_sandbox_or_its_jobs() -> None:
    text = (ROOT / "units/kvm@.service").read_text()
    sandboxed = units.emptied(text, "sandboxed", ("ExecStart=/bin/true",), sandboxed=True).splitlines()
    assert "Requires=sandboxed-setup@%i.service" in sandboxed and "PrivateNetwork=yes" in sandboxed
    assert [line for line in sandboxed if line.startswith(("Exec", "EnvironmentFile"))] == ["ExecStart=/bin/true"]
    body = units.emptied(text, "open", ("ExecStart=/bin/true",), sandboxed=False).partition("[Service]\n")[2]
    assert body.splitlines() == ["ExecStart=/bin/true", "Type=exec", "Slice=kvm-shared.slice", "KillMode=mixed"]
