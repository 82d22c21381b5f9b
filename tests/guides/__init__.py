# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guides of docs/guides, read as what they are: files to write, commands to type, and what these then say."""
