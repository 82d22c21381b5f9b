# SPDX-License-Identifier: LGPL-2.1-or-later
"""make golden: draw every expected picture anew."""

from __future__ import annotations

import shutil

from tests.unit.pictures import EXPECTED, drawn

found = drawn()
shutil.rmtree(EXPECTED, ignore_errors=True)
EXPECTED.mkdir()
for name, text in found.items():
    (EXPECTED / name).write_text(text, encoding="utf-8")
