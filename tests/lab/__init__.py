# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab: a real Debian host in QEMU, saved once while running and restored for every test group.

recipe  what the host consists of; builds its disk, kernel, initramfs and the QEMU that runs it
cache   where built things live, and that nobody builds the same one twice
machine one QEMU process: command line, monitor, its certain end
channel commands and files through the agent inside
host    Lab and Host, what the tests use
"""
