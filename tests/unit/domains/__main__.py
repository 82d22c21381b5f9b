# SPDX-License-Identifier: LGPL-2.1-or-later
"""make golden: write every domain's expected file anew."""

from __future__ import annotations

from tests.unit.domains import CASES, expected, imported

for case in CASES:
    file, now = expected(case), imported(case)
    if not file.exists() or file.read_text("utf-8") != now:
        file.write_text(now, "utf-8")
        print(file.name)
