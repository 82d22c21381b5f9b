# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests that run for as long as they are given."""
