# SPDX-License-Identifier: Apache-2.0
"""Masks for images that have none: from segmentations, boxes or a segmenter."""

from mmgap.masks.segmenters import SamSegmenter, Segmenter

__all__ = ['SamSegmenter', 'Segmenter']
