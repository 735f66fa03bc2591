# SPDX-License-Identifier: Apache-2.0
"""The page that a run leaves: ``gap/report.html``, from what is in the work directory alone."""

from mmgap.report.facts import Run, read_run
from mmgap.report.page import render_page, write_page

__all__ = ['Run', 'read_run', 'render_page', 'write_page']
