# SPDX-License-Identifier: LGPL-2.1-or-later
"""One fault case on a host: make it happen, see how it ends, and that the next start works.

The guest of that next start runs on, and the next case has it: a start is what costs most on emulated CPUs.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.host import guests
from tests.host.elastic import ELASTIC, ask, edit, reload, vcpus
from tests.host.faults import DISK, NETS
from tests.lab.errors import CommandTimeout
from tests.lab.host import Host
from tests.soak import cases, consistent, expect
from tests.soak.cases import Case
from tests.soak.consistent import Facts
from tests.soak.expect import End

LOOK = "/run/soak-look.py"
_FAULT = "/run/fault.env"
_CLAIM = "/run/kvmsup/claims/{}.env"
# So that it comes to the steps of the seed and of NVRAM. Emulated: the lab's KVM, itself emulated, runs no UEFI.
_SEEDED = guests.FIRMWARE.replace("[memory]", 'firmware = "uefi"\naccel = "tcg"\n[memory]') + "[cloud-init]\n"
_KINDS = {"tiny": guests.ISOLATED + NETS + DISK, "seeded": _SEEDED, "elastic": ELASTIC}
# By what happens to the step: seconds that systemd gives a start, or a reload. Who hangs is not waited for as long.
_PATIENCE = {"hasty": 25, "calm": 120}
_STOP_SECONDS = 10
# Parts in which the guest runs when the fault comes.
_RUNNING = ("apply", "stop", "release")
_TIDY_SECONDS = 5
# Guests of a kind that runs beside the case, from before it to after it.
_BYSTANDER, _NEIGHBOUR = "bystander", "neighbour"

_STANDING = r"""
for status in $(grep -ls '^State:.T (stopped' /proc/[0-9]*/status); do
    pid=${status#/proc/}; pid=${pid%/status}
    grep -qs kvmsup-guest /proc/$pid/cmdline && echo $pid
done | grep .
"""
_SETTLED = """
[ -z "$(systemctl list-jobs --no-legend 'kvm*')" ] &&
case "$(systemctl show -P ActiveState kvm@{0} kvm-setup@{0} kvmsup | tr -s '\\n' ' ')" in
    'active active active '|'inactive inactive active '|'inactive failed active '|'failed inactive active ') ;;
    'failed failed active ') ;;
    *) systemctl list-jobs; systemctl status --no-pager kvm@{0} kvm-setup@{0} kvmsup; false;;
esac
"""


class Wrong(Exception):
    """What a case has found that must not be, in sentences."""


def look(host: Host) -> Facts:
    """What is so on the host now."""
    found: Facts = json.loads(host.run(["python3", LOOK], timeout=300).stdout)
    return found


def victim(case: Case) -> str:
    """The guest that comes to the step of `case`."""
    kind = "elastic" if case.part == "apply" else "tiny"
    if case.step in ("create.seed", "create.nvram"):
        kind = "seeded"
    hangs = case.how == cases.STOP or case.beside == cases.STOP_QEMU
    return f"{kind}-{'hasty' if hangs else 'calm'}"


def prepare(host: Host) -> Facts:
    """The guests, and one that runs all the time; what is so when no other does."""
    install_look(host)
    texts = {f"{kind}-{how}": text for kind, text in _KINDS.items() for how in _PATIENCE}
    for name in texts:
        start_seconds = _PATIENCE[name.rpartition("-")[2]]
        limits = f"TimeoutStartSec={start_seconds}\nTimeoutStopSec={_STOP_SECONDS}\n"
        for unit in (f"kvm@{name}", f"kvm-setup@{name}"):
            host.run(f"mkdir -p /run/systemd/system/{unit}.service.d")
            lines = f"[Service]\nEnvironmentFile=-{_FAULT}\n{limits}"
            host.put(lines.encode(), f"/run/systemd/system/{unit}.service.d/fault.conf")
    host.run("ip link add br0 type bridge; ip link add v0 type veth peer name v1")
    guests.configure(host, {**texts, _BYSTANDER: guests.SHARED, _NEIGHBOUR: guests.TINY})
    guests.keep_supervisor(host)
    guests.start(host, _BYSTANDER)
    _verified(host, _BYSTANDER)
    return look(host)


def install_look(host: Host) -> None:
    host.put(Path(__file__).with_name("look.py"), LOOK)


def run(host: Host, base: Facts, case: Case, up: str) -> str:
    """`up` runs since the case before, "" for none. Returns which guest runs now; raises Wrong with what was found."""
    name = victim(case)
    if up and not (up == name and case.part in _RUNNING):
        over(host, base, up)
        up = ""
    began = host.run("date +%s.%N").stdout.strip()
    before = _make_ready(host, case, name, up)
    _arm(host, f"{case.step}:{cases.STOP if case.held else case.how}")
    _act(host, case, name)
    if case.held:
        _hold(host, case, name)
    _settle(host, name)
    _arm(host, "")
    found = _happened(host, case, name, began) + _ended(host, case, name, before)
    found += _neighbour(host, case, base, name)
    if case.part == "apply":
        host.put(ELASTIC.encode(), f"/etc/kvmsup/{name}.toml")
        if case.beside == cases.RELOAD:  # which has loaded the edited one
            host.run("systemctl daemon-reload", timeout=120)
    if not found:
        found = _next_start(host, base, name)
    if found:
        raise Wrong("\n".join(found))
    return name


def over(host: Host, base: Facts, name: str) -> None:
    """End the guest that runs since a case; raises Wrong with what it leaves behind."""
    guests.kill(host, name)
    if found := left(host, base):
        raise Wrong("\n".join([f"{name}, which ran since the case before, has ended, and:", *found]))


def _arm(host: Host, fault: str) -> None:
    host.put(f"KVMSUP_FAULT={fault}\n".encode() if fault else b"", _FAULT)


def _make_ready(host: Host, case: Case, name: str, up: str) -> int:
    """Start what has to run when the fault comes, if it is not `up`; the pid of its QEMU, or 0."""
    if case.part not in _RUNNING:
        return 0
    if up != name:
        guests.start(host, name)
    if case.part == "apply":
        edit(host, name, ("vcpus = 2\n", "vcpus = 3\n"), ('emulator = "0"', 'emulator = "1"'))
    return guests.pid(host, name)


def _act(host: Host, case: Case, name: str) -> None:
    """Let it come to the step, and do not wait."""
    verb = {"apply": "reload", "stop": "stop"}.get(case.part, "start")
    if case.part == "release":
        # No job tells when systemd has noticed.
        host.run(
            f"systemctl kill -s KILL kvm@{name}; while systemctl is-active --quiet kvm@{name}; do sleep 0.1; done"
        )
    else:
        host.run(f"systemctl {verb} --no-block kvm@{name}")


def _hold(host: Host, case: Case, name: str) -> None:
    """Whoever takes the step stands still: let happen what happens beside, and then what happens to it."""
    try:
        pid = int(host.wait_for(_STANDING, timeout=120).stdout.split()[0])
    except CommandTimeout:
        raise Wrong(f"it never came to the step {case.step}") from None
    main = guests.show(host, f"kvm@{name}", "MainPID")["MainPID"]
    commands = {
        cases.RELOAD: "systemctl daemon-reload",
        cases.NEIGHBOUR: f"systemctl start --no-block kvm@{_NEIGHBOUR}; sleep 2",
        cases.KILL_QEMU: f"kill -KILL {main}",
        cases.STOP_QEMU: f"kill -STOP {main}",
        cases.KILL_SUPERVISOR: "systemctl kill -s KILL kvmsup",
        cases.ALONE: "true",
    }
    host.run(commands[case.beside], timeout=120)
    if case.beside == cases.NEIGHBOUR and case.how == cases.PAUSE and not expect.neighbour_waits(case):
        host.wait_for(f"[ $(systemctl show -P ActiveState kvm@{_NEIGHBOUR}) = active ]", timeout=60)
    after = {cases.KILL: f"kill -KILL {pid}", cases.PAUSE: f"kill -CONT {pid}"}
    host.run(after.get(case.how, "true"))


def _settle(host: Host, name: str) -> None:
    """Wait until no job is left, and the guest is up, or down with its setup unit."""
    try:
        host.wait_for(_SETTLED.format(name), timeout=240)
    except CommandTimeout as error:
        raise Wrong(f"it does not come to an end:\n{error.stdout}") from None


def _happened(host: Host, case: Case, name: str, began: str) -> list[str]:
    """That the fault was really there; who is held has been seen."""
    if case.held:
        return []
    unit = f"kvm-setup@{name}" if case.part in ("setup", "release") else f"kvm@{name}"
    command = f"journalctl --sync; journalctl --no-pager -o cat --since @{began} -u {unit}"
    text = host.run(command).stdout
    sentence = expect.said_by_error(case) or "process exited, code=killed, status=9/KILL"
    return [] if sentence in text else [f"the journal of {unit} does not say: {sentence}\n{text}"]


def _ended(host: Host, case: Case, name: str, before: int) -> list[str]:
    """How it ended is how it should have."""
    wanted = expect.end(case)
    state, setup = guests.state(host, f"kvm@{name}"), guests.state(host, f"kvm-setup@{name}")
    if (state == "active") != (wanted in (End.RUNS, End.GOES_ON, End.APPLIED)):
        return [f"expected: {wanted.value}; kvm@{name} is {state}"]
    if wanted == End.UNRELEASED and setup != "failed":
        return [f"expected: {wanted.value}; kvm-setup@{name} is {setup}"]
    if state != "active":
        return []
    main = guests.pid(host, name)
    if case.beside == cases.STOP_QEMU:
        host.run(f"kill -CONT {main}")
    if before and main != before:
        return [f"QEMU was {before} and is {main}"]
    return _reloaded(host, case, name, wanted) if before else _verified(host, name)


def _reloaded(host: Host, case: Case, name: str, wanted: End) -> list[str]:
    """The guest runs with its threads where its claim says; after one more reload with all that was edited."""
    result = guests.show(host, f"kvm@{name}", "ReloadResult")["ReloadResult"]
    if (result == "success") != (wanted == End.APPLIED):
        return [f"expected: {wanted.value}; the reload's result is {result}"]
    # The supervisor looks a second later.
    host.wait_for(f"grep -q KVMSUP_PAUSED=no {_CLAIM.format(name)}", timeout=60)
    found = _verified(host, name)
    again = reload(host, name, check=False)
    if again.rc:
        found.append(f"the next reload of {name} failed: {guests.said(host, name)[-1000:]}")
    if not ask(host, name, "query-status")["running"]:
        found.append(f"{name} is paused")
    if len(vcpus(host, name)) != 3 or guests.claim(host, name)["EMULATOR_CPUS"] != "1":
        found.append(f"{case.name}: {vcpus(host, name)}, {guests.claim(host, name)}")
    return found + _verified(host, name)


def _verified(host: Host, name: str) -> list[str]:
    """`kvmsup verify` has nothing to say. Threads born by running are moved by the supervisor, a second later."""
    try:
        host.wait_for(f"kvmsup verify {name}", timeout=40)
    except CommandTimeout as error:
        return [f"kvmsup verify {name}: {error.stdout}"]
    return []


def _neighbour(host: Host, case: Case, base: Facts, name: str) -> list[str]:
    """The neighbour that started beside the case is as it should be, and gone afterwards.

    Where the guest's own release has failed, and no setup has come since to make up for that, one is started now.
    """
    found = _sound_and_gone(host, base) if case.beside == cases.NEIGHBOUR else []
    if expect.end(case) == End.UNRELEASED and host.run(f"test -e {_CLAIM.format(name)}", check=False).rc == 0:
        guests.start(host, _NEIGHBOUR, check=False)
        found += _sound_and_gone(host, base)
    return found


def _sound_and_gone(host: Host, base: Facts) -> list[str]:
    """What is wrong with the neighbour, and with the host beside it; then it is ended."""
    if guests.state(host, f"kvm@{_NEIGHBOUR}") != "active":
        return [f"{_NEIGHBOUR} did not start: {guests.said(host, _NEIGHBOUR)[-1000:]}"]
    found = _verified(host, _NEIGHBOUR) + consistent.sound(look(host), base)
    guests.kill(host, _NEIGHBOUR)
    return found


def _next_start(host: Host, base: Facts, name: str) -> list[str]:
    """End the guest: nothing is left; and start it again: all is right."""
    guests.kill(host, name)
    found = left(host, base)
    if guests.start(host, name, check=False).rc:
        return [*found, f"the next start failed: {guests.said(host, name)[-1000:]}"]
    return found + _verified(host, name) + consistent.sound(look(host), base)


def left(host: Host, base: Facts) -> list[str]:
    """What is not as before. Looked at twice: the kernel, and the supervisor, tidy up a moment later."""
    if not consistent.as_before(look(host), base):
        return []
    time.sleep(_TIDY_SECONDS)
    return consistent.as_before(look(host), base)
