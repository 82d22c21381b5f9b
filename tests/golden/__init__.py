# SPDX-License-Identifier: LGPL-2.1-or-later
"""Golden cases: NN-name/etc goes in, NN-name/expected must come out, compared as files.

`python3 -m tests.golden` (make golden) writes what is expected anew; read the diff like code.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from kvmsup.entry import generator

HERE = Path(__file__).parent
CASES = sorted(path.parent for path in HERE.glob("[0-9][0-9]-*/etc"))
STDERR = "stderr"


def generated(case: Path) -> dict[str, str]:
    """Every file that the generator writes for `case`, by its path; what it says is the file called stderr."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(said):
        status = generator.main([directory], root=str(case))
        found = tree(Path(directory))
    assert status == (1 if said.getvalue() else 0)
    return found | ({STDERR: said.getvalue()} if said.getvalue() else {})


def tree(directory: Path) -> dict[str, str]:
    """The text of every file below `directory`, by its path."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes().decode() for path in files}
