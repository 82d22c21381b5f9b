# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML's [credentials] and [cloud-init] → what a guest is told at its boot, as paths of the host's files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kvmsup.model import hostpaths
from kvmsup.model.guest import OWN, CloudInit, Credential
from kvmsup.model.table import Path, Table
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# QEMU keeps 55 characters of the name of a fw_cfg item (include/hw/nvram/fw_cfg.h, FW_CFG_MAX_FILE_PATH), and
# "opt/io.systemd.credentials/" takes 27 of them.
_MOST = 28
# QEMU has 32 places for fw_cfg items, and ends with a failed assertion when they are too few (hw/nvram/fw_cfg.c). It
# needs up to 18 itself: with 14 credentials a q35 with a kernel started on 10.0, with 15 it did not (7.2: 15 and 16).
MOST_CREDENTIALS = 10
# Narrower than systemd, which takes all of ASCII that can be seen but ":" and "/" (src/shared/creds-util.c).
_NAME = r"[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]*"
NOTIFY = "vmm.notify_socket"


def read_credentials(table: Table) -> tuple[Credential, ...]:
    """The [credentials] table, by name. A name with dots may be written as it is, or in quotes."""
    found: dict[str, Credential] = {}
    for path, value in _leaves(table.values):
        name = ".".join(path)
        at: Path = (*table.path, *path)
        if name in found:
            table.document.note(at, "is there twice", "leave one of them out", at_key=True)
        elif what := _wrong_name(name):
            table.document.note(at, *what, at_key=True)
        elif not isinstance(value, str):
            table.document.note(at, "is the path of a file with what the guest shall get", f'"{name}" = "/etc/…"')
        elif why := wrong_path(value):
            table.document.note(at, *why)
        else:
            found[name] = Credential(name, value)
    if len(found) > MOST_CREDENTIALS:
        told = f"{len(found)} credentials, and QEMU has room for {MOST_CREDENTIALS}"
        table.note("", told, "put the others on a disk, or into [cloud-init]")
    return tuple(found[name] for name in sorted(found))


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Dotted keys are tables in tables; an empty one is nothing that has a name."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _wrong_name(name: str) -> tuple[str, str] | None:
    if not re.fullmatch(_NAME, name):
        return "not a name for a credential", "letters, digits, _ - @ + = and, not in front, dots"
    if len(name) > _MOST:
        return f"has {len(name)} characters", f"QEMU can hand over names of {_MOST} at the most"
    if name.startswith(OWN):
        return "names that begin so are kvmsup's own", "choose another one"
    if name == NOTIFY:
        return "is given to the guest by kvmsup itself", "write ready = true into [guest]"
    return None


def wrong_path(path: str) -> tuple[str, str] | None:
    """What is wrong with `path` as a source of LoadCredential=, and the hint; None for a good one.

    systemd takes the rest of the line as it is, but without white space at its end, and ignores the whole line where
    the path has needless parts (src/core/load-fragment.c, config_parse_load_credential). Since 255 it writes path and
    name down for systemd-executor, with a space between them, and there reads words in which a backslash escapes
    (src/core/execute-serialize.c): no way to write such a path is right for that and for 252.
    """
    if not path.isprintable():
        return "has a character that cannot be printed", "use one line of printable text"
    if why := hostpaths.wrong(path):
        return why
    if " " in path or "\\" in path:
        what = f'"{path[:60]}" has a space or a backslash, which systemd takes in no credential\'s path'
        return what, "move the file, or make a link to it"
    if len(path.encode()) > 4000:
        return f'"{path[:60]}" cannot be written into a unit', "a shorter path"
    return None


def read_cloud_init(table: Table) -> CloudInit:
    """The [cloud-init] table."""
    return CloudInit(*(_source(table, key) for key in ("user-data", "meta-data", "network-config")))


def _source(table: Table, key: str) -> str:
    path = table.text(key, "")
    if not path:
        if key in table and table.values[key] == "":
            table.note(key, "is empty", f'{key} = "/etc/kvmsup/…", or leave it out')
        return ""
    if why := wrong_path(path):
        table.note(key, *why)
        return ""
    return path
