# SPDX-License-Identifier: LGPL-2.1-or-later
"""KVM guests as ordinary systemd services, placed, pinned and fed with memory.

The layers, top to bottom; imports go down only (tests/unit/test_layers.py):

    cli       one module a verb of the kvmsup command
    entry     what systemd runs: generator, setup, attach, stop, release, reload, supervisor
    effects   what touches the host; everything here takes the root path it works under
    plan      pure decisions: records in, values out
    model     configuration and topology as frozen records
    leaves    errors, catalog, cpulist, sizes, steps
"""

__version__ = "0.1.0"
