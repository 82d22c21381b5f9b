# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU, or a guest's agent, that answers in good JSON and lies: a sentence comes of it, or what can be shown."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from kvmsup.effects import agent, balloon, models, qmp, reconfigure, threads
from kvmsup.entry import stop
from kvmsup.errors import KvmsupError, QmpError
from kvmsup.model import ready
from tests.unit import fake_qemu
from tests.unit.hosts import claim

PROPS = {"socket-id": 0, "core-id": 1, "thread-id": 0}
# What each command is answered with by who is honest.
HONEST: dict[str, Any] = {
    "query-cpus-fast": [
        {"cpu-index": 0, "thread-id": 11, "qom-path": "/machine/a", "props": PROPS},
        {"cpu-index": 1, "thread-id": 12, "qom-path": "/machine/b", "props": PROPS},
    ],
    "query-iothreads": [{"id": "io0", "thread-id": 13}],
    "query-balloon": {"actual": 1 << 30},
    "query-status": {"status": "running", "running": True},
    "query-hotpluggable-cpus": [
        {"type": "x-cpu", "props": PROPS, "qom-path": "/m"},
        {"type": "x-cpu", "props": PROPS},
    ],
    "query-cpu-definitions": [{"name": "EPYC", "alias-of": "EPYC-v1", "unavailable-features": ["svm"]}],
    "query-cpu-model-expansion": {"model": {"name": "max", "props": {"svm": True, "level": 3}}},
    "guest-get-host-name": {"host-name": "web"},
    "guest-get-osinfo": {"pretty-name": "Debian"},
    "guest-network-get-interfaces": [
        {"name": "eth0", "hardware-address": "x", "ip-addresses": [{"ip-address": "192.0.2.1", "prefix": 24}]}
    ],
    "guest-fsfreeze-status": "thawed",
    "guest-fsfreeze-freeze": 2,
    "guest-fsfreeze-thaw": 2,
}
PROPERTIES: dict[object, Any] = {
    "guest-stats": {
        "stats": {"stat-free-memory": 5, "stat-available-memory": 6, "stat-swap-out": 7},
        "last-update": 8,
    },
    "guest-stats-polling-interval": 2,
    "unavailable-features": ["svm", "pdpe1gb"],
    "type": "EPYC-v1-x86_64-cpu",
    "vendor": "AuthenticAMD",
    "topoext": False,
}
LIES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 64, -(1 << 64), 10**400, 1.5, float("nan"), float("inf"), -float("inf"), 1e99),
    *("", "x", "\ud800", "a\x1b[2J\n\u202e", "x" * 100_000, "1", "-", "[]", [], {}, [[]], [None], {"": None}, [{}]),
    *({"id": 1}, {"driver": "x", "id": "y", "command": "z"}, {"error": {}}, [{"props": []}], [1] * 5000),
)  # fmt: skip


class Liar:
    """Answers every command, one leaf or branch of each answer replaced by a lie now and then."""

    peer = "QEMU"

    def __init__(self, random: Random, rate: float) -> None:
        self.random, self.rate = random, rate

    def execute(self, command: str, /, **arguments: object) -> Any:
        honest = PROPERTIES.get(arguments.get("property"), HONEST.get(command, {}))
        answer = self._bent(copy.deepcopy(honest))
        # Only what JSON can carry reaches a client.
        return json.loads(json.dumps(answer))

    def _bent(self, value: Any) -> Any:
        if self.random.random() < self.rate:
            return self.random.choice(LIES)
        if isinstance(value, dict):
            bent = {key: self._bent(inner) for key, inner in value.items() if self.random.random() > self.rate / 4}
            return bent | ({"driver": 1, "id": "x"} if self.random.random() < self.rate / 4 else {})
        if isinstance(value, list):
            return [self._bent(inner) for inner in value] * self.random.choice((1, 1, 1, 2, 0))
        return value


def named(talk: Any) -> object:
    held = claim("web", ["1", "2"])._replace(iothread={"io0": frozenset((0,))})
    return threads.named_by_qemu(talk, held)


def added(talk: Any) -> object:
    return [reconfigure.add(talk, slot) for slot in reconfigure.slots(talk)]


def catalogue(talk: Any) -> object:
    try:
        found = talk.execute("query-cpu-definitions")
        return [models._model(one) for one in found]
    except (AttributeError, KeyError, TypeError):  # which its only caller makes a sentence of
        raise QmpError("not as its schema says") from None


CLIENTS: tuple[Callable[[Any], object], ...] = (
    *(qmp.vcpu_threads, qmp.iothreads, named, balloon.actual, balloon.statistics, balloon.latest, balloon.interval),
    *(reconfigure.slots, reconfigure.running, added, models.vcpu, catalogue, lambda talk: models._expand(talk, "max")),
    *(agent.identity, agent.frozen, agent.freeze, agent.thaw, lambda talk: balloon.ask(talk, 0.0)),
)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("client", range(len(CLIENTS)))
def test_any_lie(client: int, rate: float) -> None:
    random = Random(f"{client}/{rate}")
    told = 0
    for _ in range(100):
        try:
            CLIENTS[client](Liar(random, rate))
        except KvmsupError as error:
            told += 1
            assert str(error).replace("\n", "").isprintable()
            assert len(str(error)) < 1000
    assert told or CLIENTS[client] not in (qmp.vcpu_threads, balloon.actual) or rate < 0.1


def words(found: object) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for pair in found.items():
            yield from words(pair)
    elif isinstance(found, list | tuple | frozenset):
        for one in found:
            yield from words(one)


@pytest.mark.parametrize("client", [agent.identity, models.vcpu, qmp.iothreads, catalogue])
def test_what_is_shown_can_be(client: Callable[[Any], object]) -> None:
    random, shown = Random(7), 0
    for _ in range(400):
        try:
            found = client(Liar(random, 0.1))
        except KvmsupError:
            continue
        shown += 1
        assert all(word.isprintable() and len(word) <= 120 for word in words(found))
    assert shown > 50


# ---- what a guest says over vsock ----

SAID = (
    *(
        b"READY=1",
        b"STATUS=",
        b"X_SYSTEMD_UNIT_ACTIVE=",
        b"X_SYSTEMD_UNIT_INACTIVE=",
        b"X_SYSTEMD_SHUTDOWN=",
        b"=",
        b"\n",
    ),
    *(
        b"a.target",
        b"\x1b[2J",
        b"\xff\xfe",
        b"\0",
        b"\xe2\x80\xae",
        b"\xed\xa0\x80",
        b"x" * 1000,
        b"../",
        b"(1s)",
        b" ",
    ),
)


def test_whatever_a_guest_says_is_kept_briefly_and_can_be_shown() -> None:
    random = Random(5)
    for _ in range(300):
        found = ready.Said()
        for _ in range(random.randrange(1, 9)):
            found = ready.hear(found, b"".join(random.choices(SAID, k=random.randrange(40)))[:4096])
        assert found.status.isprintable() and len(found.status) <= 250
        assert len(found.units) <= 64 and all(unit.isprintable() and "/" not in unit for unit in found.units)
        assert ready.parse(ready.render(found), "x") == found
        assert len(ready.render(found)) < 20_000


# ---- floods, by a process that is taken for QEMU ----


def test_answers_that_nobody_asked_for_do_not_hold_up_a_stop(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the guest ends in time, and the power button is pressed again; then systemd ends QEMU."""
    monkeypatch.setattr(stop, "_QUIT_SECONDS", 0.5)
    with fake_qemu.running("answers-without-end") as fake:
        began = time.monotonic()
        stop.run("web", fake.pid, fake.root, 1.0)
        assert time.monotonic() - began < 20
    assert "the guest has not shut down within 1 s: cutting its power" in capfd.readouterr().err


def test_waiting_is_over_when_it_is_over_whatever_is_sent() -> None:
    with fake_qemu.running("answers-without-end") as fake, qmp.Monitor(fake.path, fake.pid) as monitor:
        monitor.negotiate()
        began = time.monotonic()
        assert not monitor.wait_for_end(0.3)
        assert 0.3 <= time.monotonic() - began < 5


def test_a_reset_that_never_is() -> None:
    with fake_qemu.running("answers-without-end") as fake, qmp.Monitor(fake.path, fake.pid) as monitor:
        monitor.negotiate()
        with pytest.raises(QmpError, match=r"^QEMU answered what nobody has asked$"):
            monitor.reset()


def test_a_reset_among_events() -> None:
    with fake_qemu.running("resets-late") as fake, qmp.Monitor(fake.path, fake.pid) as monitor:
        monitor.negotiate()
        began = time.process_time()
        monitor.reset()
        assert monitor.events[-1] == "RESET"
        assert time.process_time() - began < 3


def test_an_answer_byte_by_byte() -> None:
    """It takes the patience at the most, and little of a CPU."""
    with fake_qemu.running("byte-by-byte") as fake, qmp.Monitor(fake.path, fake.pid) as monitor:
        monitor.deadline = time.monotonic() + 1.0
        began = time.thread_time()
        with pytest.raises(QmpError, match=r"^QEMU has not answered in time$"):
            monitor.negotiate()
        assert time.thread_time() - began < 1.0


def test_lists_without_end_are_told_briefly() -> None:
    with fake_qemu.running("vcpus-by-the-thousand") as fake, qmp.Monitor(fake.path, fake.pid) as monitor:
        monitor.negotiate()
        with pytest.raises(QmpError) as caught:
            threads.named_by_qemu(monitor, claim("web", ["1", "2"]))
    assert str(caught.value).startswith("QEMU has vCPUs 0,2,4,6,")
    assert len(str(caught.value)) < 300
