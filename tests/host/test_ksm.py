# SPDX-License-Identifier: LGPL-2.1-or-later
"""KSM is on while a consenting guest runs, and as it was found afterwards, whatever happens to the supervisor."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

RUN = "/sys/kernel/mm/ksm/run"
CONSENTING = guests.SHARED + "ksm = true\n"


@pytest.fixture(scope="module")
def two(host: Host) -> Host:
    guests.configure(host, {"consents": CONSENTING, "not": guests.SHARED})
    return host


def becomes(host: Host, value: str) -> None:
    host.wait_for(f"[ $(cat {RUN}) = {value} ]", timeout=60)


def idle(host: Host) -> None:
    host.wait_for("[ $(systemctl show -P ActiveState kvmsup) = inactive ]", timeout=60)


def test_it_is_on_for_a_guest_that_consents_only(two: Host) -> None:
    guests.start(two, "not")
    two.wait_for("[ $(systemctl show -P ActiveState kvmsup) = active ]")
    assert two.read(RUN) == "0\n"
    guests.start(two, "consents")
    becomes(two, "1")
    assert "mem-merge=on" in two.run(f"tr '\\0' ' ' < /proc/{guests.pid(two, 'consents')}/cmdline").stdout
    assert "mem-merge=off" in two.run(f"tr '\\0' ' ' < /proc/{guests.pid(two, 'not')}/cmdline").stdout
    guests.kill(two, "consents")
    becomes(two, "0")
    guests.kill(two, "not")
    idle(two)
    assert guests.leftovers(two) == []


def test_a_killed_supervisor_adopts_what_runs(two: Host) -> None:
    guests.start(two, "consents")
    becomes(two, "1")
    before = guests.pid(two, "consents")
    two.run("systemctl kill -s KILL kvmsup")
    two.wait_for("[ $(systemctl show -P NRestarts kvmsup) -ge 1 ] && systemctl is-active -q kvmsup", timeout=60)
    becomes(two, "1")
    assert guests.pid(two, "consents") == before
    guests.kill(two, "consents")
    becomes(two, "0")
    idle(two)
    assert guests.leftovers(two) == []


def test_the_supervisor_can_go_while_guests_run(two: Host) -> None:
    guests.start(two, "consents")
    becomes(two, "1")
    two.run("systemctl stop kvmsup")
    assert two.read(RUN) == "0\n"
    assert guests.state(two, "kvm@consents") == "active"
    two.run("systemctl start kvmsup")
    becomes(two, "1")
    guests.kill(two, "consents")
    becomes(two, "0")


def test_an_administrators_setting_is_found_and_kept(two: Host) -> None:
    two.run(f"echo 1 > {RUN}")
    guests.start(two, "consents")
    two.wait_for("[ -e /run/kvmsup/ksm.found ]")
    guests.kill(two, "consents")
    idle(two)
    assert two.read(RUN) == "1\n"
    two.run(f"echo 0 > {RUN}")


def test_a_change_in_between_is_kept(two: Host) -> None:
    guests.start(two, "consents")
    becomes(two, "1")
    two.run(f"echo 2 > {RUN}")
    guests.kill(two, "consents")
    idle(two)
    assert two.read(RUN) == "2\n"
    assert guests.leftovers(two) == []
    two.run(f"echo 0 > {RUN}")


def test_never_means_never(two: Host) -> None:
    two.put(b'[ksm]\npolicy = "never"\n', "/etc/kvmsup.toml")
    two.run("systemctl daemon-reload")
    guests.start(two, "consents")
    two.wait_for("systemctl is-active -q kvmsup")
    two.run("sleep 1")
    assert two.read(RUN) == "0\n"
    guests.kill(two, "consents")
    two.run("rm /etc/kvmsup.toml; systemctl daemon-reload")


def test_it_is_small(two: Host) -> None:
    """design.md: at most 20 MiB for the host."""
    guests.start(two, "consents")
    two.wait_for("systemctl is-active -q kvmsup")
    process = guests.show(two, "kvmsup", "MainPID")["MainPID"]
    rollup = two.read(f"/proc/{process}/smaps_rollup")
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 20 * 1024
    guests.kill(two, "consents")
