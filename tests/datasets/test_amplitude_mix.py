# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mmgap.datasets import AmplitudeMix
from mmgap.datasets.amplitude_mix import mix_amplitude

TOYBIRDS = dict(type='mmgap.ToyBirds', split='train', size=4)


def test_no_share_changes_nothing_and_the_whole_keeps_the_phase():
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
    assert np.array_equal(mix_amplitude(image, other, 0), image)
    assert np.array_equal(mix_amplitude(image, image, 0.7), image)
    # Phase of the one, amplitude of the other: smooth images, where nothing is clipped.
    y, x = np.mgrid[:16, :20]
    image = np.stack([100 + 20 * np.cos(2 * np.pi * x / 20)] * 3, -1).astype(np.uint8)
    other = np.stack([90 + 40 * np.sin(2 * np.pi * x / 20)] * 3, -1).astype(np.uint8)
    mixed = mix_amplitude(image, other, 1.0)
    assert np.abs(mixed[..., 0] - (90 + 40 * np.cos(2 * np.pi * x / 20))).max() <= 2


def test_transform():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:20, 8:20] = (200, 40, 10)
    np.random.seed(0)
    changed = AmplitudeMix(TOYBIRDS).transform(dict(img=image.copy()))['img']
    assert changed.shape == image.shape and changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    same = AmplitudeMix(TOYBIRDS, prob=0).transform(dict(img=image.copy()))['img']
    assert np.array_equal(same, image)
    with pytest.raises(ValueError, match=r'max_share must be in \[0, 1\], got 2'):
        AmplitudeMix(TOYBIRDS, max_share=2)
