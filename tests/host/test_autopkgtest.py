# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests that the package brings along, run on a host as autopkgtest runs them: from the package's source."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import guests
from tests.host.conftest import REPOSITORY
from tests.lab.errors import Result
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

SOURCE = "/root/source"
SKIPPED = 77


@pytest.fixture(scope="module")
def source(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The source of the package, here and at SOURCE on the host."""
    tree = tmp_path_factory.mktemp("deb") / "source"
    subprocess.run([REPOSITORY / "packaging/debian-source", tree], check=True)
    packed = subprocess.run(["tar", "-C", tree, "-c", "debian", "etc"], check=True, capture_output=True).stdout
    host.put(packed, "/root/source.tar")
    host.run(f"mkdir {SOURCE} && tar -xf /root/source.tar -C {SOURCE}")
    yield tree
    assert guests.leftovers(host) == []


def stanza(source: Path, name: str) -> dict[str, str]:
    """What debian/tests/control says of a test."""
    for text in (source / "debian/tests/control").read_text().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith("#"))
        if fields["Tests"] == name:
            return fields
    raise LookupError(name)


def run(host: Host, name: str) -> Result:
    """As README.package-tests says: from the root of the source, with a directory of the test's own."""
    script = f"export AUTOPKGTEST_TMP=$(mktemp -d); cd {SOURCE} && debian/tests/{name}"
    return host.run(script, check=False, timeout=560)


def passes(host: Host, source: Path, name: str) -> None:
    packages = stanza(source, name)["Depends"].removeprefix("@").replace(",", " ")
    host.run(f"dpkg-query --show kvmsup {packages}")
    done = run(host, name)
    assert done.rc == 0, f"{name}: {done.rc}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_smoke(host: Host, source: Path) -> None:
    passes(host, source, "smoke")


def test_linux_guest(host: Host, source: Path) -> None:
    assert "skippable" in stanza(source, "linux-guest")["Restrictions"]
    passes(host, source, "linux-guest")
    assert "demo: the power button was pressed, powering off" in guests.said(host, "linux")


def test_linux_guest_is_skipped_with_the_reason_where_there_is_no_kvm(host: Host, source: Path) -> None:
    assert source
    host.run("mv /dev/kvm /dev/kvm.away")
    missing = run(host, "linux-guest")
    host.run("ln -s /dev/null /dev/kvm")
    useless = run(host, "linux-guest")
    host.run("mv /dev/kvm.away /dev/kvm")
    assert (missing.rc, useless.rc) == (SKIPPED, SKIPPED)
    assert "SKIP: no /dev/kvm" in missing.stdout
    assert "SKIP: QEMU cannot use /dev/kvm" in useless.stdout
