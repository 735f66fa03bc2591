# SPDX-License-Identifier: Apache-2.0
"""Synthesis: found prompts and sources become images in a sample pool."""

from mmgap.synthesis.round_report import round_report
from mmgap.synthesis.sample_pool import Sample, SamplePool
from mmgap.synthesis.synthesizer import Synthesizer

__all__ = ['Sample', 'SamplePool', 'Synthesizer', 'round_report']
