# SPDX-License-Identifier: LGPL-2.1-or-later
"""What touches the host: sysfs, procfs, sockets, systemd. Everything takes the root it works under."""
