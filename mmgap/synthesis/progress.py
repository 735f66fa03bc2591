# SPDX-License-Identifier: Apache-2.0
"""How far a synthesis is."""

from __future__ import annotations

import time

from mmengine.logging import MMLogger


class Progress:
    """How far a round is, for the log."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.drawn = self.missing = 0
        self.began = self.logged = time.monotonic()

    def log(self, done: int) -> None:
        """Say so every ten seconds and at the end."""
        now = time.monotonic()
        if self.drawn == 0 or (now - self.logged < 10 and done < self.count):
            return
        self.logged = now
        each = (now - self.began) / self.drawn
        MMLogger.get_current_instance().info(
            f'[gap] synthesis {done}/{self.count}: {each * 1000:.0f} ms an image, '
            f'{(self.count - done) * each:.0f} s left'
        )
