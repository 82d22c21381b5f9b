# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measurements of kvmsup beside its peers; none of it is installed."""
