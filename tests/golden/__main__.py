# SPDX-License-Identifier: LGPL-2.1-or-later
"""make golden: write every case's expected files anew."""

from __future__ import annotations

import shutil

from tests.golden import CASES, generated, tree

for case in CASES:
    expected = case / "expected"
    before, now = tree(expected), generated(case)
    if before == now:
        continue
    shutil.rmtree(expected, ignore_errors=True)
    for name, text in now.items():
        path = expected / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    print(f"{case.name}: {', '.join(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))}")
