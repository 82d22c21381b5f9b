# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd runs. Each module has one main(), which prints errors and returns the exit status."""
