# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kvmsup and its peers cost on the same work, interleaved on one machine."""
