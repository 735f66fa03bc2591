# SPDX-License-Identifier: Apache-2.0
"""Datasets: real ones with masks or depth, a pool of generated images, their mix."""

from mmgap.compat import keep_dataset_copies_apart
from mmgap.datasets.amplitude_mix import AmplitudeMix
from mmgap.datasets.iwildcam import IWildCam
from mmgap.datasets.load_depth import LoadDepth
from mmgap.datasets.masked_folders import MaskedFolders, share_classes
from mmgap.datasets.paste_object import PasteObject
from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.datasets.synthetic_mix import SyntheticMixDataset
from mmgap.datasets.taskonomy import Taskonomy
from mmgap.datasets.waterbirds import Waterbirds

keep_dataset_copies_apart()

__all__ = [
    'AmplitudeMix',
    'IWildCam',
    'LoadDepth',
    'MaskedFolders',
    'PasteObject',
    'SyntheticDataset',
    'SyntheticMixDataset',
    'Taskonomy',
    'Waterbirds',
    'share_classes',
]
