# SPDX-License-Identifier: Apache-2.0
"""Compare methods of making training images: at equal budgets, over seeds, for several targets."""
