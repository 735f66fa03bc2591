# SPDX-License-Identifier: Apache-2.0
"""Datasets: real ones with masks and groups, a pool of generated images, and their mix."""

from mmgap.datasets.amplitude_mix import AmplitudeMix
from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.datasets.synthetic_mix import SyntheticMixDataset
from mmgap.datasets.waterbirds import Waterbirds

__all__ = ['AmplitudeMix', 'SyntheticDataset', 'SyntheticMixDataset', 'Waterbirds']
