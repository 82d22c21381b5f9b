# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the version before to this one and back, under guests that run: their QEMU, CPUs and pages are left alone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.host import guests
from tests.host.conftest import REPOSITORY
from tests.host.test_package import facts
from tests.lab.host import Host, Lab

# There is no release yet. This one is from before the sandbox hid /run and /var, and the supervisor's parts had
# modules of their own.
BEFORE = "a53e37c"
CONFFILE = "/etc/needrestart/conf.d/kvmsup.conf"


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was at BEFORE, as version 0.0.9; KVMSUP_PREVIOUS_DEB where it has been built already."""
    if named := os.environ.get("KVMSUP_PREVIOUS_DEB"):
        return Path(named).absolute()
    place = tmp_path_factory.mktemp("previous")
    archive = subprocess.run(["git", "archive", BEFORE], cwd=REPOSITORY, capture_output=True)
    if archive.returncode != 0:
        pytest.skip(f"commit {BEFORE} is not in the history here: {archive.stderr.decode().strip()}")
    (place / "tree").mkdir()
    subprocess.run(["tar", "-x", "-C", place / "tree"], input=archive.stdout, check=True)
    for name, pattern, new in (
        ("kvmsup/__init__.py", r'^__version__ = ".*"', '__version__ = "0.0.9"'),
        ("NEWS.md", r"^## [0-9.]+", "## 0.0.9"),
    ):
        file = place / "tree" / name
        file.write_text(re.sub(pattern, new, file.read_text(), count=1, flags=re.MULTILINE))
    subprocess.run([place / "tree/packaging/build-deb", place / "previous.deb"], check=True)
    return place / "previous.deb"


def version(host: Host) -> str:
    return host.run("dpkg-query --show --showformat='${Version}' kvmsup").stdout


def supervisor(host: Host) -> str:
    host.wait_for("[ $(systemctl show -P ActiveState kvmsup) = active ]", timeout=120)
    return guests.show(host, "kvmsup", "MainPID")["MainPID"]


def install(host: Host, package: Path) -> None:
    """As apt does it without anybody to ask; no unit fails."""
    host.put(package, "/var/tmp/package.deb")
    host.run(
        "DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --install /var/tmp/package.deb </dev/null", timeout=600
    )
    assert host.run("systemctl list-units --failed --no-legend").stdout == ""


def test_from_the_version_before_and_back(lab: Lab, previous: Path, deb: Path) -> None:
    with lab.fresh() as host:
        install(host, previous)
        assert version(host) == "0.0.9"
        guests.configure(host, {"tiny": guests.TINY})
        guests.install_demo(host)
        guests.start(host, "tiny")
        guests.start(host, "demo")
        before = facts(host)
        process = guests.pid(host, "demo")
        old = supervisor(host)
        host.run(f"echo '# mine' >>{CONFFILE}; echo '# mine' >>/etc/kvmsup/tiny.toml; systemctl daemon-reload")

        install(host, deb)
        assert version(host) != "0.0.9"
        assert facts(host) == before
        new = supervisor(host)
        assert new != old
        assert host.read(CONFFILE).endswith("# mine\n")
        assert host.read("/etc/kvmsup/tiny.toml").endswith("# mine\n")
        assert guests.kvmsup(host, "verify")["differences"] == []
        guests.booted(host, "demo")
        host.run("systemctl reload kvm@demo", timeout=120)
        assert (facts(host), guests.pid(host, "demo")) == (before, process)
        guests.stop(host, "demo")
        assert "demo: the power button was pressed, powering off" in guests.said(host, "demo")
        host.wait_for("[ $(systemctl show -P ActiveState kvm-setup@demo) = inactive ]", timeout=60)
        before = facts(host)  # without the pages that demo has given back

        install(host, previous)
        assert version(host) == "0.0.9"
        assert facts(host) == before
        assert supervisor(host) != new
        install(host, deb)
        assert facts(host) == before
        guests.kill(host, "tiny")
        assert guests.leftovers(host) == []
