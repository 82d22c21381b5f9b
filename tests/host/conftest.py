# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns the fixtures of the host tests: the lab, the package, and hosts with it; what a failure leaves behind.

Each test module is a group and has one host, restored with kvmsup installed. A test that must not share asks for
`fresh_host`. Where guests run Linux the module, or such a test, is marked `linux_guests`: without, hosts are emulated
faster. When the lab's kernel panics, which is the rig's failure, the test is run again, all its fixtures made anew, at
most twice, and the summary counts it. Nothing else is ever run again.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:  # however pytest was started
    sys.path.insert(0, str(REPOSITORY))

from tests.lab.errors import CommandFailed, LabError, LabPanic, LabUnavailable  # noqa: E402
from tests.lab.host import Host, Lab  # noqa: E402
from tests.lab.progress import Progress  # noqa: E402

FAILURES = REPOSITORY / "build/lab-failures"
_REPEATS = 2
# The fixtures of a test that runs on a host.
_ON_HOSTS = frozenset(("lab", "still_lab", "host", "fresh_host"))
_TAIL = 60
# Minutes from the beginning in which tests on hosts may begin, for whoever has only so many; those left are skipped.
_MINUTES = os.environ.get("KVMSUP_HOST_MINUTES")
_BEGAN = time.monotonic()
_TOO_LATE = "this machine is slow, and the minutes for tests on hosts are over: KVMSUP_HOST_MINUTES is"

_panics = pytest.StashKey[int]()
_panicked = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_panics] = 0
    config.addinivalue_line("markers", "linux_guests: the guests run Linux")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any host is restored for it."""
    if _MINUTES and _needs_a_host(item) and time.monotonic() - _BEGAN > 60 * float(_MINUTES):
        pytest.skip(f"{_TOO_LATE} {_MINUTES}")


def _needs_a_host(item: pytest.Item) -> bool:
    return not _ON_HOSTS.isdisjoint(getattr(item, "fixturenames", ()))


def make_lab(pytestconfig: pytest.Config, suite: str, *, linux_guests: bool) -> Lab:
    """The lab of `suite`, built if it is not in the cache; skips where it cannot be."""
    lab = Lab(suite, linux_guests=linux_guests)
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    quiet = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    try:
        with quiet:  # building takes a minute: it must be seen to go on
            lab.ensure_built(Progress())
    except LabUnavailable as error:
        pytest.skip(str(error))
    return lab


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    """The Debian 13 lab, for whatever guests."""
    return make_lab(pytestconfig, "trixie", linux_guests=True)


@pytest.fixture(scope="session")
def still_lab(pytestconfig: pytest.Config) -> Lab:
    """The Debian 13 lab for guests that only have to be there."""
    return make_lab(pytestconfig, "trixie", linux_guests=False)


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package under test: KVMSUP_DEB, else what `make deb` builds."""
    if named := os.environ.get("KVMSUP_DEB"):
        return Path(named).absolute()
    done = subprocess.run(["make", "deb"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"make deb failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}", pytrace=False)
    return max((REPOSITORY / "build").glob("*.deb"), key=lambda path: path.stat().st_mtime)


@contextlib.contextmanager
def restored(request: pytest.FixtureRequest, deb: Path) -> Iterator[Host]:
    """A host with kvmsup installed, of the lab that who asks for it needs."""
    marked = request.node.get_closest_marker("linux_guests")
    lab: Lab = request.getfixturevalue("lab" if marked else "still_lab")
    with lab.fresh(lab.installed(deb)) as host:
        yield host


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest, deb: Path) -> Iterator[Host]:
    """The module's host, restored with kvmsup installed. Shared by the module's tests, in their order."""
    with restored(request, deb) as host:
        yield host


@pytest.fixture
def fresh_host(request: pytest.FixtureRequest, deb: Path) -> Iterator[Host]:
    """A host with kvmsup installed for this test alone."""
    with restored(request, deb) as host:
        yield host


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps what the hosts have to say about a failure, and puts its end into the report."""
    report = yield
    if call.excinfo and call.excinfo.errisinstance(LabPanic):
        item.stash[_panicked] = True
    if report.failed:
        given = getattr(item, "funcargs", {})
        # A fixture that prepares the module's host hands on the same one: once is enough.
        for name, host in {id(host): (name, host) for name, host in given.items()}.values():
            if isinstance(host, Host):
                _keep(item, name, host, report)
    return report


def _keep(item: pytest.Item, name: str, host: Host, report: pytest.TestReport) -> None:
    place = FAILURES / re.sub(r"[^\w.-]+", "_", item.nodeid) / name
    with contextlib.suppress(LabError, CommandFailed, OSError):  # never hides the failure itself
        host.collect(place)
    for path in (place / "console.txt", place / "journal.txt"):
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()[-_TAIL:]
            report.sections.append((f"{name}: {path.relative_to(REPOSITORY)}", "\n".join(lines)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a test that met a panic of the lab's kernel again, at most twice."""
    if not _needs_a_host(item):
        return None
    from _pytest.runner import runtestprotocol

    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for _ in range(_REPEATS):
        if not _panic_seen(item):
            break
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    _panic_seen(item)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _panic_seen(item: pytest.Item) -> bool:
    """Whether the run just over met a panic; then counts it and ends every fixture, the broken host's above all."""
    if not item.stash.get(_panicked, False):
        return False
    item.stash[_panicked] = False
    item.config.stash[_panics] += 1
    with contextlib.suppress(Exception):  # what fixtures say while their host is broken is of no interest
        item.session._setupstate.teardown_exact(None)
    if hasattr(item, "_initrequest"):
        item._initrequest()  # forgets the fixtures' values
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its count to the process that writes the summary."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["lab_panics"] = session.config.stash[_panics]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_panics] += getattr(node, "workeroutput", {}).get("lab_panics", 0)


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    if panics := config.stash[_panics]:
        terminalreporter.write_line(
            f"lab panics: {panics} (the rig's; each such test was run again on a fresh restore)"
        )
    skipped = terminalreporter.stats.get("skipped", [])
    if late := [report.nodeid for report in skipped if _TOO_LATE in str(report.longrepr)]:
        terminalreporter.write_line(f"not run, {len(late)}, as {_TOO_LATE} {_MINUTES}:\n  " + "\n  ".join(late))
