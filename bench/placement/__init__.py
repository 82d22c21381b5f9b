# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where kvmsup puts guests, beside where others would put the same guests."""
