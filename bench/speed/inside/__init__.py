# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs inside the container, each module by itself, and prints JSON. The standard library alone."""
