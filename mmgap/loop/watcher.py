# SPDX-License-Identifier: Apache-2.0
"""What a round hands out while it runs, for whoever looks on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmgap.loop.contact_sheet import RoundPictures
from mmgap.search.progress import PromptProgress


class Watcher(Protocol):
    """Looks on while a round runs; it must change nothing, and is told by the main process alone.

    The loop knows nothing of where the facts go: :class:`mmgap.GAPHook` has one that passes them to
    the Runner's visualizer.
    """

    def searched(self, round_index: int, step: int, prompts: Sequence[PromptProgress]) -> None:
        """A step of the search is done.

        Args:
            round_index: The round.
            step: Number of the step, from 1. A search that was killed and goes on tells again what
                came after its checkpoint.
            prompts: Those that took the step; one that has just started again has no losses.
        """

    def pictured(self, round_index: int, pictures: RoundPictures) -> None:
        """The pictures of a round are there.

        Args:
            round_index: The round.
            pictures: They are small.
        """
