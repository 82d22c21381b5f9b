# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine that does not come to all tests on hosts in its time says which, and runs all the others."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.tree import ROOT


def test_what_a_slow_machine_does_not_come_to_is_skipped_by_name() -> None:
    """No host is restored for it, and a test that needs none is run."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    tests = [
        "tests/host/test_demo.py",
        "tests/host/test_faults_at_start.py::test_every_step_belongs_to_a_part_that_is_tested",
    ]
    environment = {**os.environ, "KVMSUP_HOST_MINUTES": "0"}
    done = subprocess.run([*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 9 skipped" in done.stdout
    assert "not run, 9, as this machine is slow" in done.stdout
    assert "\n  tests/host/test_demo.py::test_drift_is_seen\n" in done.stdout
