# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the soak calls consistent: each thing that can be wrong on a host is found, and what is right is not."""

from __future__ import annotations

import copy
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.soak import consistent, crowd, look

Json = dict[str, Any]
KSM = {"run": "0", "pages_to_scan": "100"}


def claim(**fields: str) -> dict[str, str]:
    usual = {
        "STATE": "held",
        "PLACEMENT": "shared",
        "VCPU_CPUS": "0-7",
        "IDLE_CPUS": "",
        "EMULATOR_CPUS": "0-1",
        "PAGES": "",
        "PAGES_GROWN": "",
        "CID": "0",
        "NETS": "",
    }
    return usual | fields


def facts() -> Json:
    """A dedicated guest with hugepages, and a shared one with a tap, both up."""
    own = claim(PLACEMENT="dedicated", VCPU_CPUS="2 3", PAGES="0=32", PAGES_GROWN="0=32", CID="7")
    nets = "lan=bridge,52:54:00:00:00:01,kvm-a,br0"
    return {
        "dead_holder": 0,
        "waited": 0.0,
        "units": {"kvm@own.service": "active", "kvm@all.service": "active"},
        "claims": {"own": own, "all": claim(NETS=nets, CID="8")},
        "qemus": {
            "10": {
                "slice": "kvm-dedicated.slice",
                "guest": "own",
                "active": True,
                "threads": [["CPU 0/KVM", "2"], ["CPU 1/KVM", "3"], ["qemu", "0-1"]],
                "pages": {"0": 32},
            },
            "11": {
                "slice": "kvm-shared.slice",
                "guest": "all",
                "active": True,
                "threads": [["CPU 0/KVM", "0-1,4-7"], ["qemu", "0-1"]],
                "pages": {},
            },
        },
        "pools": {"0": {"nr_hugepages": 32, "surplus_hugepages": 0}, "1": {"nr_hugepages": 0, "surplus_hugepages": 0}},
        "links": {"kvm-a": {"alias": "kvm@all lan", "master": "br0"}},
        "fence": "0-1 4-7",
        "effective": "0-1,4-7",
        "present": "0-7",
        "ksm": KSM,
        "ksm_again": KSM,
        "left": {"ksm.found": [], "running": ["all", "own"]},
    }


BASE: Json = facts() | {
    "units": {},
    "claims": {},
    "qemus": {},
    "links": {},
    "fence": "",
    "pools": {node: {"nr_hugepages": 0, "surplus_hugepages": 0} for node in ("0", "1")},
    "left": {"ksm.found": [], "running": []},
}


def test_what_is_right() -> None:
    assert consistent.sound(facts(), BASE) == []
    assert consistent.as_before(copy.deepcopy(BASE), BASE) == []


def second_owner(seen: Json) -> None:
    seen["claims"]["more"] = claim(PLACEMENT="dedicated", VCPU_CPUS="4", IDLE_CPUS="3,5")
    seen["fence"] = seen["effective"] = "0-1,6-7"
    seen["qemus"]["11"]["threads"] = []


def no_claim(seen: Json) -> None:
    del seen["claims"]["own"]
    seen["pools"]["0"]["nr_hugepages"] = 0
    seen["fence"] = ""


def twins(seen: Json) -> None:
    seen["claims"]["twin"] = claim(NETS="lan=bridge,52:54:00:00:00:01,kvm-b,br0", CID="8")


def at(*path: str | int, value: object) -> Callable[[Json], None]:
    """What sets one of the facts."""

    def change(seen: Json) -> None:
        place: Any = seen
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (at("dead_holder", value=99), "the claims' lock is held by process 99, which is dead"),
        (at("waited", value=-1.0), "the claims' lock was never free"),
        (second_owner, "CPU 3 is dedicated to more and to own"),
        (no_claim, "QEMU 10 of own runs and its claim is None"),
        (at("qemus", "11", "slice", value="system.slice"), "all is shared and runs in system.slice"),
        (at("qemus", "10", "threads", 0, 1, value="2-3"), "CPU 0/KVM of own may run on CPU 2-3, claimed is 2"),
        (
            at("qemus", "11", "threads", 1, 1, value="0-2"),
            "qemu of all, which is shared, may run on owned CPU 2",
        ),
        (at("qemus", "10", "pages", value={"0": 31}), "own has hugepages {'0': 31}, claimed are {'0': 32}"),
        (at("pools", "0", "nr_hugepages", value=33), "node 0 has 33 pages, by the claims 32 to 32"),
        (at("pools", "1", "surplus_hugepages", value=1), "node 1 has 1 surplus pages"),
        (twins, "2 guests have the CID 8"),
        (twins, "2 guests have the MAC 52:54:00:00:00:01"),
        (at("links", value={}), "kvm-a of all should be in br0, and is in None"),
        (
            at("links", "kvm-x", value={"alias": "kvm@own lan", "master": ""}),
            "kvm-x is there for own, which claims none of that name",
        ),
        (at("fence", value=""), "the fence is at nothing, by the claims 0-1,4-7"),
        (at("effective", value="0-7"), "shared guests may use CPU 0-7, by the claims 0-1,4-7"),
    ],
)
def test_what_is_wrong(change: Callable[[Json], None], told: str) -> None:
    seen = facts()
    change(seen)
    assert told in consistent.sound(seen, BASE)


def test_ksm_that_nobody_wrote_down() -> None:
    seen = facts() | {"ksm": KSM | {"run": "1"}, "ksm_again": KSM | {"run": "1"}}
    (told,) = consistent.sound(seen, BASE)
    assert told.endswith("nobody wrote down what was found")
    seen["left"]["ksm.found"] = ["/run/kvmsup/ksm.found"]
    assert consistent.sound(seen, BASE) == []


def test_a_setup_that_died_may_have_added_some_of_its_pages() -> None:
    seen = facts()
    seen["claims"]["dead"] = claim(STATE="reserving", PAGES="0=16", PAGES_GROWN="0=16")
    for pages, right in ((32, True), (40, True), (48, True), (49, False), (31, False)):
        seen["pools"]["0"]["nr_hugepages"] = pages
        assert (consistent.sound(seen, BASE) == []) is right


def test_a_guest_that_only_starts_may_have_threads_anywhere() -> None:
    seen = facts()
    seen["qemus"]["10"] |= {"active": False, "threads": [["CPU 0/KVM", "0-7"]], "pages": {}}
    assert consistent.sound(seen, BASE) == []


def test_what_is_left() -> None:
    found = consistent.as_before(facts(), BASE)
    assert "there is a claim of own" in found
    assert "QEMU 11 of all runs" in found
    assert "kvm@own.service is active" in found
    assert any(one.startswith("pools: ") for one in found) and any(one.startswith("left: ") for one in found)
    gone = consistent.as_before(copy.deepcopy(BASE), facts())
    assert {"the claim of own is gone", "QEMU 10 of own is gone"} <= set(gone)


def test_a_lock_held_by_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a child that was never told to close it."""
    monkeypatch.setattr(look, "RUN", str(tmp_path))
    assert look.dead_holder() == 0
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        fcntl.flock(os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
        heir = os.fork()
        if heir:
            os.write(writer, str(heir).encode())
        signal.pause()
        os._exit(0)
    heir = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    try:
        assert look.dead_holder() == 0
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert look.dead_holder() == holder
    finally:
        os.kill(heir, signal.SIGKILL)


def test_the_crowd_is_mixed() -> None:
    texts = [crowd.text(number) for number in range(crowd.GUESTS)]
    for word, count in {"dedicated": 10, "hugepages": 10, "bridge": 25, "ksm = true": 13, "ready": 13}.items():
        assert sum(word in text for text in texts) == count
