# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of the repository, for tests that look at all of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    """Every file of the repository, whether or not it has been added yet.

    Raises OSError, or CalledProcessError, where git cannot tell.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
