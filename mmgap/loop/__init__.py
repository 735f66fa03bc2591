# SPDX-License-Identifier: Apache-2.0
"""The loop: search, synthesis and report of a round, for hook, commands, benchmark and checks."""

from mmgap.loop.report import environment, group_report
from mmgap.loop.round import Loop
from mmgap.loop.settings import GAPSettings
from mmgap.loop.watcher import Watcher

__all__ = ['GAPSettings', 'Loop', 'Watcher', 'environment', 'group_report']
