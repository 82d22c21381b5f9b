# SPDX-License-Identifier: LGPL-2.1-or-later
"""An error and a kill -9 at every named step; after each, nothing is left behind."""

from __future__ import annotations

import pytest

from kvmsup.steps import STEPS
from tests.host import guests
from tests.lab.host import Host

STARTING = [step for step in STEPS if step.startswith(("setup.", "attach."))]
STOPPING = [step for step in STEPS if step.startswith("stop.")]
RELEASING = [step for step in STEPS if step.startswith("release.")]
UNITS = ("kvm@tiny", "kvm-setup@tiny")


def inject(host: Host, fault: str) -> None:
    """Arm `fault` (STEP:HOW) in both units of the guest; "" disarms."""
    host.put(f"KVMSUP_FAULT={fault}\n".encode() if fault else b"", "/run/fault.env")
    host.run("systemctl reset-failed 'kvm*'", check=False)


@pytest.fixture(scope="module")
def tiny(host: Host) -> Host:
    """Guests whose units read the fault anew at each command, and which are not waited for at stop."""
    for unit in UNITS:
        host.run(f"mkdir -p /run/systemd/system/{unit}.service.d")
        lines = "[Service]\nEnvironmentFile=-/run/fault.env\nTimeoutStopSec=8\n"
        host.put(lines.encode(), f"/run/systemd/system/{unit}.service.d/fault.conf")
    guests.configure(host, {"tiny": guests.TINY, "other": guests.TINY})
    guests.keep_supervisor(host)
    return host


def test_every_step_belongs_to_a_part_that_is_tested() -> None:
    assert sorted(STARTING + STOPPING + RELEASING) == sorted(STEPS)


@pytest.mark.parametrize("how", ["error", "kill"])
@pytest.mark.parametrize("step", STARTING)
def test_a_start_that_fails_leaves_nothing(tiny: Host, step: str, how: str) -> None:
    inject(tiny, f"{step}:{how}")
    started = guests.start(tiny, "tiny", check=False)
    assert started.rc == 1, started
    guests.released(tiny, "tiny")
    assert guests.pages(tiny) == (0, 0)
    assert guests.leftovers(tiny) == []
    if how == "error":
        assert f"a fault was injected at the step {step} (KVMSUP_FAULT)" in guests.said(tiny, "tiny")


@pytest.mark.parametrize("how", ["error", "kill"])
@pytest.mark.parametrize("step", STOPPING)
def test_a_stop_that_fails_still_stops(tiny: Host, step: str, how: str) -> None:
    inject(tiny, f"{step}:{how}")
    guests.start(tiny, "tiny")
    tiny.run("systemctl stop kvm@tiny", check=False, timeout=60)
    guests.released(tiny, "tiny")
    assert guests.pages(tiny) == (0, 0)
    assert guests.leftovers(tiny) == []


@pytest.mark.parametrize("how", ["error", "kill"])
@pytest.mark.parametrize("step", RELEASING)
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
    inject(tiny, "")
    guests.start(tiny, "tiny")
    assert guests.allowed(tiny, guests.pid(tiny, "tiny"))["CPU 1/KVM"] == "3"
    guests.kill(tiny, "tiny")
    assert guests.leftovers(tiny) == []
