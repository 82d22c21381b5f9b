# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks QEMU about CPU models: a short-lived one, paused, without devices, that no guest ever runs in.

Off the start path: it takes as long as a start of QEMU. As root it is started as nobody in the group kvm, so that it
may do no more than a guest's QEMU.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from functools import cache

from kvmsup.effects import files, qmp
from kvmsup.errors import HostError, QmpError
from kvmsup.model.guest import Guest
from kvmsup.model.table import Problem
from kvmsup.plan import models
from kvmsup.plan.models import Catalogue, CpuModel, Given
from kvmsup.plan.paths import BINARY
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from typing import IO, Any

# A QEMU that does nothing starts within a second; on a host under emulation in two.
_PATIENCE_SECONDS = 20.0
# Every accelerator can run it, so that what is asked does not depend on it.
_ANY_CPU = "qemu64"
# More are no list that anybody reads; QEMU knows some 400.
_MOST_FEATURES = 1000
# User and group (systemd.io/UIDS-GIDS).
_NOBODY = 65534


@cache
def catalogue(machine: str, accel: str) -> Catalogue:
    """What this host's QEMU knows with that machine type and accelerator. Raises HostError."""
    with _qemu(machine, accel, _ANY_CPU) as monitor:
        found = monitor.execute("query-cpu-definitions")
        full = _expand(monitor, "max")
        try:
            known = {model.name: model for model in map(_model, found)}
        except (AttributeError, KeyError, TypeError):
            raise QmpError("QEMU's list of CPU models is not as its schema says") from None
    return Catalogue(machine, accel, known, frozenset(name for name, value in full.items() if type(value) is bool))


def _model(one: dict[str, Any]) -> CpuModel:
    missing = tuple(dict.fromkeys(map(_told, one.get("unavailable-features", ()))))
    deprecated, safe = bool(one.get("deprecated")), bool(one.get("migration-safe"))
    return CpuModel(_told(one["name"]), _told(one.get("alias-of", "")), missing, deprecated, safe)


def _told(word: object) -> str:
    """A name as QEMU tells it; this is the program's, but what it says goes to terminals."""
    return files.printable(str(word)[:100])


def _expand(monitor: qmp.Conversation, name: str) -> dict[str, Any]:
    answer = monitor.execute("query-cpu-model-expansion", type="full", model={"name": name})
    try:
        return {_told(name): value for name, value in answer["model"]["props"].items()}
    except (AttributeError, KeyError, TypeError):
        raise QmpError("QEMU's description of a CPU model is not as its schema says") from None


def expansions(machine: str, accel: str, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Each of `names` with the features that it turns on. Raises HostError."""
    with _qemu(machine, accel, _ANY_CPU) as monitor:
        # What even the model without features has on is no feature.
        nothing = _on(_expand(monitor, "base"))
        return {name: _on(_expand(monitor, name)) - nothing for name in names}


def _on(props: dict[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in props.items() if value is True)


def relatives(known: Catalogue, model: str, features: Sequence[str] = ()) -> list[str]:
    """The usable models nearest to `model`, best first, where `features` change each. Raises HostError."""
    usable = models.candidates(known, features)
    return models.relatives(model, expansions(known.machine, known.accel, [model, *usable]))


@cache
def given(machine: str, accel: str, model: str, features: tuple[str, ...]) -> Given:
    """What a vCPU of that model gets on this host. Raises HostError, for names that QEMU does not know too."""
    with _qemu(machine, accel, ",".join((model, *features))) as monitor:
        return vcpu(monitor)


def vcpu(monitor: qmp.Conversation) -> Given:
    """What vCPU 0 of a QEMU has been given; all are of one model. Raises QmpError."""
    try:
        path = next(str(one["qom-path"]) for one in monitor.execute("query-cpus-fast") if one["cpu-index"] == 0)
    except (KeyError, TypeError, StopIteration):
        raise QmpError("QEMU's list of vCPUs is not as its schema says") from None

    def ask(name: str) -> Any:
        return monitor.execute("qom-get", path=path, property=name)

    missing = ask("unavailable-features")
    if not isinstance(missing, list):
        raise QmpError("QEMU's list of a vCPU's features is not as its schema says")
    kind = _told(ask("type")).removesuffix("-x86_64-cpu")
    return Given(
        kind,
        tuple(dict.fromkeys(map(_told, missing[:_MOST_FEATURES]))),
        _told(ask("vendor")),
        ask("topoext") is True,
    )


def problems(guest: Guest) -> list[Problem]:
    """What is wrong with the CPU of `guest` on this host. Raises HostError when QEMU cannot be asked."""
    machine, cpu = guest.machine, guest.cpu
    if not models.worth_asking(cpu):
        return []
    known = catalogue(machine.type, machine.accel)
    if found := list(models.unknown(known, cpu)):
        return found
    got = given(machine.type, machine.accel, cpu.model, cpu.features)
    if got.missing:
        return list(models.refused(known, cpu, got, relatives(known, cpu.model, cpu.features)))
    return list(models.advice(known, cpu, got))


@contextlib.contextmanager
def _qemu(machine: str, accel: str, cpu: str) -> Iterator[qmp.Conversation]:
    """A QEMU to ask. Raises HostError with what QEMU said where it does not start or stops answering."""
    import socket  # who asks a guest's own QEMU has no need of it, nor of subprocess

    ours, its = socket.socketpair()
    command = _command(machine, accel, cpu, its.fileno())
    with ours, os.fdopen(os.memfd_create("stderr"), "w+b") as said:
        with its:
            process = _spawn(command, its.fileno(), said)
        try:
            with qmp.Conversation(ours, process.pid, time.monotonic() + _PATIENCE_SECONDS) as monitor:
                monitor.negotiate()
                yield monitor
        except QmpError as error:
            process.kill()
            process.wait()
            raise _reason(said, error, accel) from None
        finally:
            process.kill()
            process.wait()


def _command(machine: str, accel: str, cpu: str, descriptor: int) -> list[str]:
    # check=off: what is missing is asked for, QEMU need not list it as well.
    return [
        *(BINARY, "-S", "-nodefaults", "-no-user-config", "-display", "none", "-m", "16M"),
        *("-machine", f"{machine},accel={accel}", "-cpu", f"{cpu},check=off"),
        *("-chardev", f"socket,id=qmp,fd={descriptor}", "-mon", "chardev=qmp,mode=control"),
    ]


def _spawn(command: Sequence[str], descriptor: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    import subprocess

    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        import grp

        # "kvm" is systemd's group for /dev/kvm (sysusers.d/basic.conf).
        groups = [group.gr_gid for group in grp.getgrall() if group.gr_name == "kvm"]
        who = {"user": _NOBODY, "group": _NOBODY, "extra_groups": groups}
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command, stdin=null, stdout=null, stderr=said, pass_fds=(descriptor,), cwd="/", env={}, **who
        )
    except OSError as error:
        hint = "apt install qemu-system-x86" if isinstance(error, FileNotFoundError) else ""
        raise HostError(f"{command[0]} cannot be run: {error.strerror}", hint) from None


def _reason(said: IO[bytes], error: QmpError, accel: str) -> HostError:
    """What QEMU itself said about its end, else what the conversation failed of."""
    said.seek(0)
    lines = said.read(4096).decode(errors="replace").splitlines()
    own = [line.partition(": ")[2] for line in lines if line.startswith("qemu-system-") and ": warning: " not in line]
    told = own[0] if own else str(error)
    hint = ""
    if "machine type" in told:
        hint = "qemu-system-x86_64 -machine help lists them"
    elif accel == "kvm" and "kvm" in told.lower():
        hint = "/dev/kvm must be there, and open to the group kvm"
    return HostError(f"QEMU cannot be asked for its CPU models: {told}", hint)
