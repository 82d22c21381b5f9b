# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pure decisions: records in, values or text out; nothing here reads or writes the host."""
