# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every generated tree beside the packaged units, as systemd itself sees it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kvmsup.model import config, hostpaths, nets
from kvmsup.model.guest import Guest
from kvmsup.plan import agreed, dropin, paths, qemu
from kvmsup.plan.unitfile import Variable, Word
from tests.golden import CASES, tree
from tests.unit import real_systemd, systemd_syntax

ROOT = Path(__file__).parents[2]
KINDS = ("service", "path", "slice", "socket")
PACKAGED = [path for kind in KINDS for path in sorted((ROOT / "units").glob(f"*.{kind}"))]


def guests(case: Path) -> list[str]:
    found = (path.name for path in (case / "expected").glob("kvm@*.service.d"))
    return sorted(name.removeprefix("kvm@").removesuffix(".service.d") for name in found)


def units(case: Path) -> dict[str, str]:
    """The packaged units and the drop-ins of `case`; the programs they run are ones that exist anywhere."""
    packaged = {path.name: path.read_text("utf-8") for path in PACKAGED}
    found = {name: text for name, text in tree(case / "expected").items() if name != "stderr"}
    guest = "/usr/lib/kvmsup/kvmsup-guest"
    programs = ("@LIBDIR@/kvmsup-guest", guest, "@LIBDIR@/kvmsup-supervisor", paths.BINARY)
    for name, text in (packaged | found).items():
        for program in programs:
            text = text.replace(program, "/usr/bin/env")
        assert "@" not in name.partition("@")[2]
        assert "@LIBDIR@" not in text
        found[name] = text
    return found


def complaints(files: dict[str, str], wanted: list[str]) -> list[str]:
    """What systemd-analyze says about units of ours; those of the machine that the test runs on are not."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    with real_systemd.unit_directory(files) as directory:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *wanted],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_UNIT_PATH": f"{directory}/units:"},
            capture_output=True,
            text=True,
            check=False,
        )
        return [line for line in done.stderr.splitlines() if str(directory) in line or "kvm" in line]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_systemd_has_nothing_to_say(case: Path) -> None:
    wanted = [f"kvm@{guest}.service" for guest in guests(case)] or ["kvm@any.service"]
    assert not complaints(units(case), wanted + [path.name for path in PACKAGED if "@" not in path.name])


@pytest.mark.parametrize("line", ["Nonsense=1", "ExecStart=relative", "CPUAffinity=x", 'ExecStart=/usr/bin/env "'])
def test_systemd_would_say_so(line: str) -> None:
    files = units(CASES[0])
    files["kvm@web.service.d/50-kvmsup.conf"] += f"{line}\n"
    assert complaints(files, ["kvm@web.service"])


def described(case: Path, guest: str) -> Guest:
    content = (case / f"etc/kvmsup/{guest}.toml").read_bytes()
    return config.read_guest(guest, f"{guest}.toml", content).guest


def literal(word: Word) -> str:
    return "".join(f"${{{part.name}}}" if isinstance(part, Variable) else part for part in word)


@pytest.mark.parametrize("case", [case for case in CASES if guests(case)], ids=lambda case: case.name)
def test_systemd_reads_the_very_command_line(case: Path) -> None:
    claimed = ("HOST_NODES", "CELL_0", "CELL_1", "FILL_0", "FILL_1", "AIO", "FIRMWARE")
    names = {name: f"${{{name}}}" for name in (f"KVMSUP_{word}" for word in claimed)}
    for guest in guests(case):
        asked = described(case, guest)
        unit = f"kvm@{guest}.service"
        dump = real_systemd.load(units(case), unit)
        (argv,) = [argv for argv in real_systemd.command_lines(dump, unit) if "-nodefaults" in argv]
        found = [systemd_syntax.environment(word, names) for word in argv[1:]]
        assert found == [literal(word) for option in qemu.options(asked) for word in option]
        shown = f"KVM guest {guest}" + (f": {asked.description}" if asked.description else "")
        assert f"\tDescription: {shown}\n" in dump


def test_patience_grows_from_what_the_units_have() -> None:
    """The generated TimeoutStartSec= is the packaged one and something on top."""
    for unit, seconds in (("kvm@", dropin._START_SECONDS), ("kvm-setup@", agreed.SETUP_SECONDS)):
        assert f"\nTimeoutStartSec={seconds}\n" in (Path(__file__).parents[2] / f"units/{unit}.service").read_text()


def test_programs_of_ours_have_the_hosts_mounts() -> None:
    """+ alone leaves them with what TemporaryFileSystem= hides (seen on 252 and 257)."""
    lines = (ROOT / "units/kvm@.service").read_text().splitlines()
    ours = [line for line in lines if "kvmsup-guest" in line]
    assert len(ours) == 5
    assert all(
        "=+" in line and " nsenter --mount=/proc/1/ns/mnt @LIBDIR@/" in f" {line.partition('+')[2]}" for line in ours
    )


# What `systemd-analyze security` may say at most, in tenths: what README and SECURITY.md say it says.
_ALONE, _WIRED, _USER, _SUPERVISOR = 3, 3, 12, 26


def exposed(files: dict[str, str], unit: str, most: int) -> str:
    """What systemd-analyze finds wanting where its verdict is worse than `most`; "" for a good one."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    with real_systemd.unit_directory(files) as directory:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", f"--threshold={most}", "--no-pager", unit],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_UNIT_PATH": f"{directory}/units:"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert f"Overall exposure level for {unit}" in done.stdout, done.stderr
    return "".join(line for line in done.stdout.splitlines(True) if "✗" in line) if done.returncode else ""


def most_for(guest: Guest) -> int:
    kinds = {net.kind for net in guest.nets}
    return _USER if nets.USER in kinds else _WIRED if kinds else _ALONE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sandbox(case: Path) -> None:
    for guest in guests(case):
        assert not exposed(units(case), f"kvm@{guest}.service", most_for(described(case, guest)))


def test_the_sandbox_of_the_supervisor() -> None:
    assert not exposed(units(CASES[0]), "kvmsup.service", _SUPERVISOR)
    for name in ("kvmsup-listen.service", "kvmsup-reload.service", "kvm-ready@any.service"):
        assert not exposed(units(CASES[0]), name, 20)
    assert not exposed(units(CASES[0]), "kvm-setup@any.service", 40)


@pytest.mark.parametrize("line", ["PrivateDevices=no", "CapabilityBoundingSet=CAP_SYS_ADMIN", "PrivateNetwork=no"])
def test_a_worse_sandbox_would_be_seen(line: str) -> None:
    files = units(CASES[0])
    files["kvm@web.service.d/60-worse.conf"] = f"[Service]\n{line}\nDevicePolicy=auto\n"
    assert exposed(files, "kvm@web.service", _ALONE)


def test_systemd_shows_the_very_files_and_hides_the_rest() -> None:
    (case,) = [case for case in CASES if case.name == "33-hidden-files"]
    dump = real_systemd.load(units(case), "kvm@web.service")
    lines = [line.strip() for line in dump.splitlines()]
    asked = described(case, "web")
    named = [asked.machine.kernel, asked.machine.initrd, "/var/lib/images/debian13.qcow2", "/run/systemd/notify"]
    assert [line for line in lines if line.startswith("BindReadOnlyPaths:")] == [
        f"BindReadOnlyPaths: -{path}:{path}:rbind" for path in named
    ]
    hidden = {line.partition(": ")[2].removesuffix(":ro") for line in lines if line.startswith("TemporaryFileSystem:")}
    assert {path.rstrip("/") for path in hostpaths.HIDDEN} <= hidden
