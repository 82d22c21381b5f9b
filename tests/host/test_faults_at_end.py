# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kill -9, or an error, at every named step of stop and release; after each, nothing is left behind."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.host.faults import RELEASING, STOPPING, cases, inject, prepare, the_next_start_works
from tests.lab.host import Host


@pytest.fixture(scope="module")
def tiny(host: Host) -> Host:
    return prepare(host)


@pytest.mark.parametrize(("step", "how"), cases(STOPPING))
def test_a_stop_that_fails_still_stops(tiny: Host, step: str, how: str) -> None:
    inject(tiny, f"{step}:{how}")
    guests.start(tiny, "tiny")
    tiny.run("systemctl stop kvm@tiny", check=False, timeout=60)
    guests.released(tiny, "tiny")
    assert guests.pages(tiny) == (0, 0)
    assert guests.leftovers(tiny) == []


@pytest.mark.parametrize(("step", "how"), cases(RELEASING))
def test_a_release_that_fails_is_made_up_for_by_the_next_setup(tiny: Host, step: str, how: str) -> None:
    inject(tiny, f"{step}:{how}")
    guests.start(tiny, "tiny")
    tiny.run("systemctl kill -s KILL kvm@tiny; systemctl stop kvm@tiny", check=False)
    tiny.wait_for("[ $(systemctl show -P ActiveState kvm-setup@tiny) = failed ]")
    assert guests.claim(tiny, "tiny")["VCPU_CPUS"] == "2 3"
    inject(tiny, "")
    guests.start(tiny, "other")
    assert guests.claim(tiny, "other")["VCPU_CPUS"] == "2 3"
    assert guests.pages(tiny) == (32, 0)
    guests.kill(tiny, "other")
    assert guests.pages(tiny) == (0, 0)
    assert guests.leftovers(tiny) == []


def test_the_next_start_works(tiny: Host) -> None:
    the_next_start_works(tiny)
