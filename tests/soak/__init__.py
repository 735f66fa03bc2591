# SPDX-License-Identifier: Apache-2.0
"""What is run by hand, and not by ``pytest``: bad inputs, and large pools."""
