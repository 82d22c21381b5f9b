# SPDX-License-Identifier: LGPL-2.1-or-later
"""KSM is on while a consenting guest runs, and as it was found afterwards, whatever happens to the supervisor."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

KSM = "/sys/kernel/mm/ksm"
RUN = f"{KSM}/run"
CONSENTING = guests.SHARED + "ksm = true\n"
ALWAYS = '[ksm]\npolicy = "always"\n'


@pytest.fixture(scope="module")
def two(host: Host) -> Host:
    host.put(ALWAYS.encode(), "/etc/kvmsup.toml")
    guests.configure(host, {"consents": CONSENTING, "twin": CONSENTING, "not": guests.SHARED})
    return host


def becomes(host: Host, value: str) -> None:
    host.wait_for(f"[ $(cat {RUN}) = {value} ]", timeout=60)


def knobs(host: Host) -> dict[str, str]:
    text = host.run(f"cd {KSM} && grep . run pages_to_scan sleep_millisecs advisor_mode").stdout
    return dict(line.split(":", 1) for line in text.splitlines())


def set_to(host: Host, **values: str) -> None:
    host.run(" && ".join(f"echo {value} > {KSM}/{name}" for name, value in values.items()))


def told(host: Host) -> str:
    return host.run("journalctl --sync; journalctl --boot --no-pager --output=cat --unit kvmsup").stdout


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


def test_guests_are_merged_and_every_knob_is_put_back(two: Host) -> None:
    """Two guests in the same firmware; in the middle the supervisor is killed, and adopts what runs."""
    set_to(two, pages_to_scan="333", sleep_millisecs="44")
    found = knobs(two)
    for name in ("consents", "twin"):
        guests.start(two, name)
    two.wait_for(f"[ $(cat {KSM}/pages_sharing) -gt 0 ] && [ $(cat {KSM}/sleep_millisecs) = 200 ]", timeout=120)
    assert "KSM goes on slowly after a burst" in told(two)
    status = guests.kvmsup(two, "status consents")["ksm"]
    assert status["merged"] > 0
    assert status["running"] is True
    assert " merged, profit " in two.run("kvmsup status consents").stdout
    host = guests.kvmsup(two, "list")["host"]
    assert host["ksm"] is True
    assert host["ksm_saved"] >= 4096
    assert host["ksmd_seconds"] > 0
    before = guests.pid(two, "consents")
    two.run("systemctl kill -s KILL kvmsup")
    two.wait_for("[ $(systemctl show -P NRestarts kvmsup) -ge 1 ] && systemctl is-active -q kvmsup", timeout=60)
    becomes(two, "1")
    assert guests.pid(two, "consents") == before
    for name in ("consents", "twin"):
        guests.kill(two, name)
    idle(two)
    assert knobs(two) == found
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


def test_ksm_that_an_administrator_has_on_is_left_alone(two: Host) -> None:
    set_to(two, run="1")
    found = knobs(two)
    guests.start(two, "consents")
    two.wait_for_line("--unit=kvmsup", "KSM is on already, by somebody else")
    assert knobs(two) == found
    guests.kill(two, "consents")
    idle(two)
    assert knobs(two) == found
    set_to(two, run="0")


def test_a_change_in_between_is_kept(two: Host) -> None:
    """The kernel's advisor was on, with a sleep of its own; run and pages_to_scan are changed meanwhile."""
    set_to(two, sleep_millisecs="55", advisor_mode="scan-time")
    guests.start(two, "consents")
    becomes(two, "1")
    two.wait_for(f"grep -q '\\[none\\]' {KSM}/advisor_mode")
    set_to(two, pages_to_scan="77", run="2")
    two.run("systemctl reload kvmsup")
    two.wait_for_line("--unit=kvmsup", "somebody else has set")
    guests.kill(two, "consents")
    idle(two)
    now = knobs(two)
    assert (now["run"], now["sleep_millisecs"], now["advisor_mode"]) == ("2", "55", "none [scan-time]")
    assert guests.leftovers(two) == []
    set_to(two, run="0", advisor_mode="none", pages_to_scan="100", sleep_millisecs="20")


def test_pressure(two: Host) -> None:
    """Off while memory is ample, on when all but a tenth of it is taken, off a minute after it is free again."""
    two.run("rm /etc/kvmsup.toml; systemctl daemon-reload")
    guests.start(two, "consents")
    two.wait_for("systemctl is-active -q kvmsup")
    two.run("sleep 2")
    assert two.read(RUN) == "0\n"
    eat = "awk '/MemTotal/ {t = $2} /MemAvailable/ {a = $2} END {print int(a - t / 10)}' /proc/meminfo"
    two.run("mount -t tmpfs -o size=95% eater /mnt")
    two.run(f"fallocate -l $({eat})K /mnt/eaten", timeout=120)
    becomes(two, "1")
    assert "KSM is on for consents: memory is short, 1" in told(two)
    two.run("umount /mnt")
    two.wait_for(f"[ $(cat {RUN}) = 0 ]", timeout=180)
    assert "memory is ample again" in told(two)
    guests.kill(two, "consents")
    idle(two)
    assert guests.leftovers(two) == []


def test_never_means_never(two: Host) -> None:
    two.put(b'[ksm]\npolicy = "never"\n', "/etc/kvmsup.toml")
    two.run("systemctl daemon-reload")
    guests.start(two, "consents")
    two.wait_for("systemctl is-active -q kvmsup")
    two.run("sleep 1")
    assert two.read(RUN) == "0\n"
    guests.kill(two, "consents")
    two.put(ALWAYS.encode(), "/etc/kvmsup.toml")
    two.run("systemctl daemon-reload")


def test_it_is_small(two: Host) -> None:
    """design.md: at most 20 MiB for the host."""
    guests.start(two, "consents")
    two.wait_for("systemctl is-active -q kvmsup")
    process = guests.show(two, "kvmsup", "MainPID")["MainPID"]
    rollup = two.read(f"/proc/{process}/smaps_rollup")
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 20 * 1024
    guests.kill(two, "consents")
