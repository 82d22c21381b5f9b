# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guides and README, followed to the letter by somebody who types what they say and reads what comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guides.follow import follow, host_for
from tests.guides.transcript import Command, Guide, read
from tests.lab.host import Host, Lab

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs/guides").rglob("*.md"))


@pytest.fixture
def guide(request: pytest.FixtureRequest) -> Guide:
    path: Path = request.param
    return read(path.read_text("utf-8"))


@pytest.fixture
def guide_host(guide: Guide, lab: Lab, deb: Path) -> Iterator[Host]:
    with host_for(guide, lab, deb) as host:
        yield host


def named(paths: list[Path]) -> pytest.MarkDecorator:
    names = [str(path.relative_to(ROOT)) for path in paths]
    return pytest.mark.parametrize(("guide", "name"), zip(paths, names, strict=True), indirect=["guide"], ids=names)


@named(GUIDES)
def test_a_guide(guide: Guide, guide_host: Host, name: str) -> None:
    follow(guide_host, name, guide.steps)


def build_the_demo(host: Host) -> None:
    host.run("/usr/share/doc/kvmsup/examples/demo/build-initramfs /var/lib/kvmsup-demo/initramfs", timeout=120)


# Its example is of one host on one day: thread numbers and sizes, times, and the CPU that a thread ran on last.
VARIES = re.compile(r"\d{3,}|(?<=since ).* UTC|\d+(?= +ok$)")


def amended(command: Command) -> Command:
    """With `…` for what varies."""
    return replace(command, output=tuple(VARIES.sub("…", line) for line in command.output))


@named([ROOT / "README.md"])
def test_the_readmes_first_guest(guide: Guide, guide_host: Host, name: str) -> None:
    """What README shows further down is of hosts with other guests, which it does not say how to come by."""
    build_the_demo(guide_host)
    for step in guide.steps:
        if isinstance(step, Command) and step.text.startswith("kvmsup new"):
            return
        follow(guide_host, name, [amended(step) if isinstance(step, Command) else step])
    raise AssertionError("README has no kvmsup new any more")
