# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup list: guests and the host at a glance; kvmsup.cli.listing is what it shows."""

from __future__ import annotations

from kvmsup.effects import systemctl
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def run(asked: argparse.Namespace) -> int:
    """Print the listing, once or again and again."""
    if asked.watch:
        from kvmsup.cli import listing, watch

        return watch.run(listing.in_full if asked.json else listing.at_once, asked.watch, json=asked.json)
    # While systemd answers, which takes as long, the rest is imported and read.
    question = systemctl.ask_for_guests()
    from kvmsup.cli import listing, show

    look = listing.in_full if asked.json else listing.at_once
    return show.once(look(question), json=asked.json)
