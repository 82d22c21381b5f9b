# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tells one disk from another, however it is named: links and mounts give one file many paths."""

from __future__ import annotations

import os
import stat


def of(found: os.stat_result) -> str:
    """`found` of a file or block device, in digits and colons: its device, and of a file its inode."""
    if stat.S_ISBLK(found.st_mode):
        return f"block:{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return f"file:{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}"
