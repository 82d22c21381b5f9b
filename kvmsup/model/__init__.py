# SPDX-License-Identifier: LGPL-2.1-or-later
"""Configuration, claims and topology as frozen records, and the readers of their text forms."""
