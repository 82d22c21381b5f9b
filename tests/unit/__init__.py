# SPDX-License-Identifier: LGPL-2.1-or-later
"""The quick tests: no root, no KVM, no network."""
