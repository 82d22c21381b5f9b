# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns the cache directory: one entry per key, built once, complete or absent, and old ones dropped."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_LIVE = "alive.lock"


def root() -> Path:
    """The cache directory, created if need be: KVMSUP_CACHE, else kvmsup below the XDG cache directory."""
    base = os.environ.get("KVMSUP_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kvmsup")
    path = Path(base).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(*parts: str | bytes) -> str:
    """A short key for these parts, in this order."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path` (created); the kernel drops it when this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def entry(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The directory of `key`, filled by `fill(temporary directory)` if it is not there yet.

    Raises what `fill` raises; nothing is left behind then.
    """
    place = root() / kind / key
    with locked(place.with_name(f".{key}.lock")):
        if not place.is_dir():
            _build(place, fill)
    return place


def _build(place: Path, fill: Callable[[Path], None]) -> None:
    for stale in place.parent.glob(f".{place.name}.new-*"):  # we hold the lock: its builder is dead
        shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{place.name}.new-", dir=place.parent))
    new.chmod(0o755)
    try:
        fill(new)
        new.rename(place)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def drop(path: Path) -> None:
    """Removes an entry at once (renamed first, so that nobody finds half of one)."""
    gone = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone / "old")
    shutil.rmtree(gone, ignore_errors=True)


def touch(path: Path) -> None:
    """Marks an entry as used now."""
    with contextlib.suppress(OSError):  # someone else's cache, perhaps read-only
        os.utime(path)


def oldest(kind: str, prefix: str, keep: int) -> list[Path]:
    """The entries of this kind whose key begins so, without the `keep` last used ones."""
    found = [path for path in (root() / kind).glob(f"{prefix}*") if path.is_dir()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[keep:]


def scratch() -> tuple[Path, int]:
    """A directory for one running host, and the descriptor whose lock says that it is in use.

    Directories of processes that died without tidying up are removed on the way.
    """
    base = root() / "run"
    base.mkdir(exist_ok=True)
    with locked(base / ".lock"):
        for other in base.iterdir():
            if other.is_dir() and not _in_use(other):
                shutil.rmtree(other, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix="h-", dir=base))
        # Inherited by QEMU on purpose: the directory stays as long as either of the two lives.
        live = os.open(place / _LIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(live, fcntl.LOCK_EX)
    return place, live


def _in_use(place: Path) -> bool:
    try:
        with open(place / _LIVE, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
