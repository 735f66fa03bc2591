# SPDX-License-Identifier: Apache-2.0
"""A file that runs code when it is unpickled as Python does by default."""

from __future__ import annotations

import os
from pathlib import Path


class Hostile:
    """Makes a folder when it is unpickled.

    Args:
        folder: The folder, which shows that it ran.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
