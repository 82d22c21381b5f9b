# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup's policy for KSM beside others', on the KSM of the machine's own kernel."""
