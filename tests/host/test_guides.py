# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guides, followed to the letter by somebody who types what they say and reads what comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guides.follow import follow, host_for
from tests.guides.transcript import Guide, read
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
