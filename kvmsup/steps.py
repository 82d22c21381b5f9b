# SPDX-License-Identifier: LGPL-2.1-or-later
"""The named steps of a guest's life: the places where a test can make the machinery fail.

Every action of setup, attach, stop and release that can fail is announced here by name just before it is taken.
With KVMSUP_FAULT=STEP:error the step raises, with STEP:kill the process is gone as by kill -9, with STEP:stop it
hangs as by SIGSTOP. Only root can set a unit's environment; without the variable a step costs a look-up.
"""

from __future__ import annotations

import os

from kvmsup.errors import HostError

STEPS = (
    "setup.configuration",  # read the TOML and compare it with what systemd has loaded
    "setup.host",  # /dev/kvm, kernel and initrd are there for QEMU's user
    "setup.lock",  # the one lock over all claims
    "setup.claims",  # read the other guests' claims, sweep stale ones
    "setup.place",  # choose or check CPUs and nodes
    "setup.intend",  # write the claim, before the first page is taken
    "setup.reserve",  # grow the hugepage pools
    "setup.fence",  # keep shared guests off owned CPUs
    "setup.interrupts",  # and the host's interrupts off isolated ones
    "setup.hold",  # write the claim as kvm@ reads it
    "setup.record",  # write down what the guest is started with
    "create.seed",  # cloud-init's, in the guest's sandbox
    "create.sweep",  # what an earlier attempt has left
    "create.images",  # those that are not there
    "create.nvram",  # what the guest's firmware keeps
    "attach.connect",  # QEMU's control monitor
    "attach.negotiate",  # answered once QEMU has built the machine and filled its memory
    "attach.plug",  # hand over what only root may open
    "attach.tap",  # make a tap for a bridge
    "attach.join",  # put it there
    "attach.macvtap",  # make a macvtap
    "attach.reset",  # so that the firmware sees what was plugged
    "attach.threads",  # vCPU index to tid
    "attach.isolate",  # take its CPUs from everybody else
    "attach.pin",  # affinity and scheduler of each thread
    "attach.verify",  # read every pin back from the kernel
    "attach.memory",  # compare hugepages with the claim; tells, never refuses
    "attach.run",  # the first guest instruction
    "attach.look-again",  # threads that were born by running
    "apply.configuration",  # a reload: read the TOML
    "apply.lock",
    "apply.claims",  # what it was started with, and the other guests' claims
    "apply.place",  # where its threads go now
    "apply.connect",
    "apply.intend",  # write down which keys are about to change
    "apply.isolate",  # the CPUs that it has now
    "apply.pin",  # affinity and scheduler of each thread, read back
    "apply.memory",  # KSM and the balloon
    "apply.pause",  # so that an added vCPU does not run before it is pinned
    "apply.add",  # each vCPU
    "apply.pin-added",
    "apply.run",  # let it go on
    "apply.hold",  # write down what it runs with
    "stop.connect",
    "stop.powerdown",
    "stop.wait",
    "stop.quit",
    "release.lock",
    "release.pages",  # give back what setup took
    "release.fence",  # let shared guests use the CPUs again
    "release.interrupts",  # and interrupts come there
    "release.claim",  # remove the claim
)

# The supervisor's own, which belongs to no guest.
SUPERVISOR = ("supervisor.lock",)  # it has the one lock over all claims


def step(name: str) -> None:
    """Announce that `name` is about to be done.

    Raises HostError when KVMSUP_FAULT asks for an error at this very step.
    """
    fault = os.environ.get("KVMSUP_FAULT")
    if fault is not None:
        where, _, how = fault.partition(":")
        if where == name:
            _inject(name, how)


def _inject(name: str, how: str) -> None:
    if how == "error":
        raise HostError(f"a fault was injected at the step {name} (KVMSUP_FAULT)")
    import signal

    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])
