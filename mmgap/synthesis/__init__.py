# SPDX-License-Identifier: Apache-2.0
"""Synthesis: found prompts and sources become images in a sample pool."""

from mmgap.synthesis.round_report import round_report
from mmgap.synthesis.synthesizer import Synthesizer

__all__ = ['Synthesizer', 'round_report']
