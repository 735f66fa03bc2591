# SPDX-License-Identifier: Apache-2.0
"""Synthesis: found prompts and sources become images in a sample pool."""

from mmgap.synthesis.settings import SynthesisSettings
from mmgap.synthesis.synthesizer import Synthesizer

__all__ = ['SynthesisSettings', 'Synthesizer']
