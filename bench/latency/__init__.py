# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a guest's only vCPU does not run while its host has a noisy neighbour: shared, dedicated, isolated."""
