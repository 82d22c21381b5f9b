# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo`: the package on a fresh host, and the demo guest from start to stop, as one would see it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from .errors import CommandFailed, LabError
from .host import Host, Lab
from .progress import Progress

EXAMPLE = "/usr/share/doc/kvmsup/examples/demo"
POOLS = "grep . /sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages"
# What a shell sends to find out about its terminal.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
READY = "demo: ready"


def main() -> int:
    """Show the demo; 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.demo", description=__doc__)
    parser.add_argument("--deb", type=Path, required=True, metavar="FILE", help="the package to show")
    parser.add_argument("--suite", default="trixie", help="Debian suite of the host (default: %(default)s)")
    asked = parser.parse_args()
    progress = Progress()
    try:
        lab = Lab(asked.suite)
        lab.ensure_built(progress)
        progress.stage("restoring a host: 8 CPUs in 2 sockets, 2 NUMA nodes, 6 GiB")
        with lab.fresh() as host:
            progress.stage(f"installing {asked.deb.name}")
            host.install(asked.deb)
            _demonstrate(host, progress)
            progress.stage("done")
    except (LabError, CommandFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _demonstrate(host: Host, progress: Progress) -> None:
    _show(host, f"{EXAMPLE}/build-initramfs /var/lib/kvmsup-demo/initramfs")
    _show(host, f"cp {EXAMPLE}/demo.toml /etc/kvmsup/; grep -v '^#' /etc/kvmsup/demo.toml")
    host.wait_for("systemctl show -P ExecStart kvm@demo | grep -q qemu-system", timeout=30)
    _show(host, "kvmsup check")
    _show(host, POOLS)
    _show(host, "systemctl start kvm@demo")
    progress.stage("the guest boots: Linux under KVM, itself emulated")
    host.wait_for_line("--unit=kvm@demo", READY, timeout=180)
    _show(host, "systemctl status --no-pager --lines 0 kvm@demo")
    _show(host, "journalctl --boot --no-pager --output cat --unit kvm@demo | grep -A 20 '^demo: Linux'")
    _show(host, "kvmsup status demo")
    _show(host, "grep -H Cpus_allowed_list /proc/$(systemctl show -P MainPID kvm@demo)/task/*/status")
    _show(host, POOLS)
    _show(host, "{ echo 'uname -sm; nproc; free -m'; sleep 6; printf '\\035'; } | kvmsup console demo")
    _show(host, "systemctl stop kvm@demo")
    host.wait_for("[ ! -e /run/kvmsup/claims/demo.env ]", timeout=30)
    _show(host, "journalctl --boot --no-pager --output cat --unit kvm@demo | tail -n 6")
    _show(host, POOLS)


def _show(host: Host, command: str) -> None:
    """Run `command` and show it as on a terminal; it must succeed."""
    print(f"\n# {command}", flush=True)
    done = host.run(command, timeout=240)
    text = _ESCAPES.sub("", done.stdout + done.stderr).replace("\r", "").rstrip()
    if text:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
