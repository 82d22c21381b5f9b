# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup cpu-models [NAME]: what QEMU knows for cpu.model, and which of it this host can give to a guest."""

from __future__ import annotations

import textwrap

from kvmsup.cli import show
from kvmsup.effects import models
from kvmsup.errors import KvmsupError
from kvmsup.plan.models import Catalogue, CpuModel, closest, in_order
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any

_HEADS = ("MODEL", "VERSION", "HERE", "MISSING FEATURES")


def run(asked: argparse.Namespace) -> int:
    """Print the models, or all about one; 1 when that one cannot be used here."""
    known = models.catalogue(asked.machine, asked.accel)
    if asked.name:
        return _one(asked, known)
    chosen = [model for model in in_order(known.models.values()) if model.usable or not asked.usable]
    if asked.json:
        about = {"machine": known.machine, "accel": known.accel}
        show.as_json(about | {"models": [_described(model) for model in chosen]})
    else:
        for line in _table(chosen):
            print(line)
    return 0


def _one(asked: argparse.Namespace, known: Catalogue) -> int:
    model = known.models.get(asked.name)
    if not model:
        near = closest(asked.name, known.models)
        hint = f"did you mean {near}?" if near else "kvmsup cpu-models lists those there are"
        raise KvmsupError(f"QEMU has no CPU model {asked.name} with the machine type {known.machine}", hint)
    near_ones = [] if model.usable else models.relatives(known, model.name)
    if asked.json:
        show.as_json({"machine": known.machine, "accel": known.accel} | _described(model) | {"relatives": near_ones})
    else:
        for line in _lines(model, known, near_ones):
            print(line)
    return 0 if model.usable else 1


def _described(model: CpuModel) -> dict[str, Any]:
    """The model for programs."""
    return {
        "name": model.name,
        "alias_of": model.alias_of or None,
        "usable": model.usable,
        "missing": list(model.missing),
        "deprecated": model.deprecated,
        "migration_safe": model.migration_safe,
    }


def _word(model: CpuModel) -> str:
    return "usable" if model.usable else "unusable"


def _table(chosen: list[CpuModel]) -> list[str]:
    """The listing; on a terminal what is missing is cut to its width, anything else gets it whole."""
    rows = [[_name(model), model.alias_of, _word(model), ", ".join(model.missing)] for model in chosen]
    room = 0
    if show.on_terminal():
        before = [max(map(len, column)) for column in list(zip(_HEADS, *rows, strict=True))[:3]]
        room = show.columns() - sum(before) - 2 * len(before)
    for row in rows:
        row[3] = _cut(row[3], max(room, len(_HEADS[3]))) if room else row[3]
    return show.table(_HEADS, rows)


def _name(model: CpuModel) -> str:
    return f"{model.name} (deprecated)" if model.deprecated else model.name


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else textwrap.shorten(text, room, placeholder=" …", break_on_hyphens=False)


def _lines(model: CpuModel, known: Catalogue, relatives: list[str]) -> list[str]:
    stands = f", which is {model.alias_of} with {known.machine}" if model.alias_of else ""
    where = "on this host" if known.accel == "kvm" else "under emulation"
    lines = [f"{model.name}{stands}: {show.paint(_word(model))} {where}"]
    if model.missing:
        lines += _wrapped("missing", ", ".join(model.missing))
        lines += _wrapped("nearest", ", ".join(relatives) or "none of those that can be used")
    if model.deprecated:
        lines += _wrapped("deprecated", "QEMU will drop it")
    if not model.migration_safe:
        lines += _wrapped("migration", "not safe: what it is differs from host to host")
    return lines


def _wrapped(head: str, text: str) -> list[str]:
    width = show.columns() if show.on_terminal() else 120
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=f"  {head:<10}  ",
        subsequent_indent=" " * 14,
        break_on_hyphens=False,
    )
