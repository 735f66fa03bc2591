# SPDX-License-Identifier: Apache-2.0
"""The command ``mmgap``: its table, and the commands that belong to no other folder."""
