# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a person waits for kvmsup, beside virsh."""
