# SPDX-License-Identifier: Apache-2.0
"""Synthesis: found prompts and sources become images in a sample pool."""

from mmgap.synthesis.guidance import GuidanceSettings, SampleGuidance
from mmgap.synthesis.plan import Planner
from mmgap.synthesis.selection import Keep, choose, usefulness
from mmgap.synthesis.settings import SynthesisSettings
from mmgap.synthesis.synthesizer import Synthesizer

__all__ = [
    'GuidanceSettings',
    'Keep',
    'Planner',
    'SampleGuidance',
    'SynthesisSettings',
    'Synthesizer',
    'choose',
    'usefulness',
]
