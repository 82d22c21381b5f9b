# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup's generator beside podman's and that of fstab, by how much they are given; and its share of a daemon-reload.

python3 -m bench.speed.inside.generators ROUNDS COUNT...
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.cli.run import Took, run, took
from bench.speed.inside.guests import ETC, in_turn
from bench.speed.inside.peers import cpu_seconds

Json = dict[str, Any]
PROGRAMS = Path("/usr/lib/systemd/system-generators")
# What is here goes before what is packaged (systemd.generator(7)).
OWN_PROGRAMS = Path("/etc/systemd/system-generators")
_GUESTS_OF_A_RELOAD = 30
KEPT = Path("/var/cache/kvmsup")

_GUEST = """description = "guest {number}"
[machine]
type = "pc-q35-7.2"
firmware = "uefi"
[cpu]
model = "host"
vcpus = 4
[placement]
cpus = "dedicated"
[memory]
size = "4G"
hugepages = "2M"
[disk.root]
path = "root.qcow2"
format = "qcow2"
size = "20G"
[net.lan]
bridge = "br0"
"""
_CONTAINER = """[Unit]
Description=container {number}
After=network-online.target
[Container]
Image=docker.io/library/nginx:1.27
ContainerName=bench-{number}
Network=host
PublishPort=127.0.0.1:8080:80
Volume=/srv/bench-{number}:/usr/share/nginx/html:ro
Environment=NGINX_PORT=80 LANG=C.UTF-8
PodmanArgs=--memory=4g --cpus=4
[Install]
WantedBy=multi-user.target
"""
_OPTIONS = "defaults,nofail,x-systemd.device-timeout=9"
_MOUNT = f"UUID=01234567-89ab-cdef-0123-{{number:012}} /srv/bench-{{number}} ext4 {_OPTIONS} 0 2\n"


class Generator:
    """One that is run by hand, as systemd does, on sources of its own."""

    program = ""
    makes = ""  # what it makes of one source, as a pattern below the first directory

    def give(self, count: int, place: Path) -> None:
        """Make it find `count` sources, which are below `place` where it can be told."""

    def once(self, out: Path, count: int) -> Took:
        """Raises RuntimeError when it fails or has not made all that it should."""
        places = [out / name for name in ("normal", "early", "late")]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        found = took([str(PROGRAMS / self.program), *map(str, places)])
        if (made := len(list(places[0].glob(self.makes)))) != count:
            raise RuntimeError(f"{self.program} has made {made} of {count}")
        return found


class Kvmsup(Generator):
    """As at most daemon-reloads: nothing was edited since what it makes was kept."""

    program, makes = "kvmsup-generator", "kvm@*.service.d/50-kvmsup.conf"

    def give(self, count: int, place: Path) -> None:
        del place  # it reads where it always does
        for old in ETC.glob("*.toml"):
            old.unlink()
        for number in range(count):
            (ETC / f"bench-{number}.toml").write_text(_GUEST.format(number=number))
        run("systemctl", "start", "kvmsup-reload")  # as the path unit does after an edit


class First(Kvmsup):
    """As after an edit of the host's file: all is made anew."""

    def give(self, count: int, place: Path) -> None:
        pass  # the other has

    def once(self, out: Path, count: int) -> Took:
        away = KEPT.rename(f"{KEPT}.away")
        try:
            return super().once(out, count)
        finally:
            away.rename(KEPT)


class Quadlet(Generator):
    program, makes = "podman-system-generator", "bench-*.service"

    def give(self, count: int, place: Path) -> None:
        sources = place / "quadlet"
        sources.mkdir()
        for number in range(count):
            (sources / f"bench-{number}.container").write_text(_CONTAINER.format(number=number))
        os.environ["QUADLET_UNIT_DIRS"] = str(sources)


class Fstab(Generator):
    program, makes = "systemd-fstab-generator", "srv-bench*.mount"

    def give(self, count: int, place: Path) -> None:
        table = place / "fstab"
        table.write_text("".join(_MOUNT.format(number=number) for number in range(count)))
        os.environ["SYSTEMD_FSTAB"] = str(table)


PEERS: Mapping[str, Generator] = {"kvmsup": Kvmsup(), "first": First(), "quadlet": Quadlet(), "fstab": Fstab()}


def measure(rounds: int, counts: Sequence[int]) -> Json:
    """`runs`, by count and peer; `growth`, milliseconds a source; `reload`, of a manager with 30 guests."""
    run("systemctl", "stop", "kvmsup-reload.path")  # nothing is to be loaded meanwhile
    os.environ["SYSTEMD_SCOPE"] = "system"
    found = {str(count): by_count(count, rounds) for count in counts}
    few, many = (count for count in (min(counts, key=lambda count: abs(count - 10)), max(counts)))
    growth = {who: _growth(found, who, few, many) for who in PEERS} if few < many else {}
    return {"runs": found, "growth": {"from": few, "to": many} | growth, "reload": reloads(rounds)}


def by_count(count: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """By peer, milliseconds of each run. The first of each fills caches."""
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in PEERS}
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/run") as place:
        for peer in PEERS.values():
            peer.give(count, Path(place))
        for turn in range(rounds + 1):
            for who in in_turn(PEERS, turn):
                one = PEERS[who].once(Path(place), count)
                if turn:
                    runs[who].append(one._asdict())
    return runs


def _growth(found: Mapping[str, Any], who: str, few: int, many: int) -> dict[str, float]:
    """Milliseconds that each further source takes."""
    both = [{of: median(one[of] for one in found[str(count)][who]) for of in Took._fields} for count in (few, many)]
    return {of: (both[1][of] - both[0][of]) / (many - few) for of in Took._fields}


def reloads(rounds: int) -> Json:
    """By variant, milliseconds of each daemon-reload, and of the container's CPU time; the generator by itself.

    `loaded`: as it is. `masked`: without the generator, so systemd has no drop-ins to read either. `copied`: a program
    of the shell's puts there what the generator would, so that only the difference to `loaded` is the generator's own.
    """
    generator = PEERS["kvmsup"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("loaded", "masked", "copied")}
    alone: list[dict[str, float]] = []
    with _guests(_GUESTS_OF_A_RELOAD) as place:
        for turn in range(rounds + 1):
            for variant in in_turn(found, turn):
                with _instead(variant, place):
                    one = _reload()
                if turn:
                    found[variant].append(one)
            if turn:
                alone.append(generator.once(place, _GUESTS_OF_A_RELOAD)._asdict())
        units = len(run("systemctl", "list-units", "--all", "--no-legend").splitlines())
    return {"guests": _GUESTS_OF_A_RELOAD, "units": units, "generator": alone} | found


@contextlib.contextmanager
def _guests(count: int) -> Iterator[Path]:
    """That many enabled guests, whose units systemd loads at every reload. `ready` is what becomes of them."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/run") as name:
        place, units = Path(name), [f"kvm@bench-{number}" for number in range(count)]
        PEERS["kvmsup"].give(count, place)
        OWN_PROGRAMS.mkdir(exist_ok=True)
        run("systemctl", "enable", *units)
        (place / "ready").mkdir()
        took([str(PROGRAMS / "kvmsup-generator"), str(place / "ready")])
        copier = place / "copier"
        copier.write_text(f'#!/bin/sh\nexec cp -R {place}/ready/. "$1"\n')
        copier.chmod(0o755)
        try:
            yield place
        finally:
            run("systemctl", "disable", *units)
            PEERS["kvmsup"].give(0, place)
            run("systemctl", "daemon-reload")


@contextlib.contextmanager
def _instead(variant: str, place: Path) -> Iterator[None]:
    """Have systemd run what `variant` says where the generator would be."""
    link = OWN_PROGRAMS / "kvmsup-generator"
    if variant != "loaded":
        link.symlink_to("/dev/null" if variant == "masked" else place / "copier")
    try:
        yield
    finally:
        link.unlink(missing_ok=True)


def _reload() -> dict[str, float]:
    used, began = cpu_seconds(), time.perf_counter()
    run("systemctl", "daemon-reload")
    return {"wall": 1000 * (time.perf_counter() - began), "cpu": 1000 * (cpu_seconds() - used)}


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]), [int(word) for word in sys.argv[2:]]), sys.stdout)
