# SPDX-License-Identifier: Apache-2.0
"""What is said of pools that a model can, and cannot, tell from real images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from PIL import Image

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.injection import InjectionSettings, judge_images
from mmgap.injection.judge import pooled_features
from mmgap.pool import SamplePool
from tests.support.pools import ABOUT
from tests.support.tiny import tiny_classifier

pytestmark = pytest.mark.usefixtures('on_cpu')


@pytest.fixture(scope='module')
def reader(pipeline) -> Compose:
    """As test data are read."""
    return Compose([pipeline[0], pipeline[-1]])


@pytest.fixture(scope='module')
def pools(tmp_path_factory, many, pipeline) -> dict[str, SyntheticDataset]:
    """Pale negatives of the real images, the real images themselves, and one of them."""
    found = {}
    for kind in ('strange', 'same', 'one'):
        pool = SamplePool(tmp_path_factory.mktemp(kind))
        for i in range(1 if kind == 'one' else len(many)):
            info = many.get_data_info(i)
            image = np.asarray(Image.open(info['img_path']))
            if kind == 'strange':
                pool.append(255 - image // 4, **dict(ABOUT, label=info['gt_label'], source_index=i))
            else:
                pool.append_real(image, label=info['gt_label'], group=None, source_index=i)
        found[kind] = SyntheticDataset(str(pool.folder), pipeline=pipeline)
    return found


def test_strange_images_are_for_a_refit(pools, many, reader):
    model = tiny_classifier().train()
    found = {
        kind: judge_images(model, pools[kind], many, InjectionSettings(mode='auto'), reader)
        for kind in ('strange', 'same')
    }
    strange, same = found['strange'], found['same']
    assert (strange['mode'], same['mode']) == ('refit', 'mix')
    assert strange['generated'] > 0.95 and same['generated'] < 0.75
    assert strange['control'] == same['control'] < 0.8
    for about, side in ((strange, 'at or above'), (same, 'below')):
        said = f'generated from real images with accuracy {about["generated"]:.2f}, and two draws '
        assert f'{said}of real ones with {about["control"]:.2f}: {side} ' in about['why']
    assert all(module.training for module in model.modules())


def test_images_with_depth_are_for_a_mix(pools, many, reader, tmp_path):
    """However well the model tells them from real ones, and if it has no features at all."""
    for kind in ('strange', 'same'):
        pool = SamplePool(tmp_path / kind)
        for i in range(len(many)):
            image = np.asarray(Image.open(pools[kind].get_data_info(i)['img_path']))
            pool.append(image, np.full(image.shape[:2], 900, np.uint16), **ABOUT, depth_unit=1e-3)
    strange, real = (SyntheticDataset(str(tmp_path / kind)) for kind in ('strange', 'same'))
    for mode, chosen in (('auto', 'mix'), ('refit', 'refit')):
        settings = InjectionSettings(mode=mode)
        found = judge_images(tiny_classifier(), strange, real, settings, reader)
        assert (found['mode'], found['generated'] > 0.95) == (chosen, True)
        assert ('For depth no refit was better' in found['why']) == (mode == 'auto')
    model = tiny_classifier()
    model.extract_feat = None
    found = judge_images(model, strange, real, InjectionSettings(mode='auto'), reader)
    assert (found['mode'], found['generated']) == ('mix', None)


@pytest.mark.parametrize('mode', ['mix', 'refit', 'staged', 'replace'])
def test_a_mode_that_is_set_stays(mode, pools, many, reader):
    for kind in ('strange', 'same'):
        settings = InjectionSettings(mode=mode)
        found = judge_images(tiny_classifier(), pools[kind], many, settings, reader)
        assert found['mode'] == mode and found['why'].startswith('On its features a linear probe')
        assert (found['generated'] > 0.95) == (kind == 'strange')
        assert 'teach the one kind' not in found['why']


@pytest.mark.parametrize('mode, chosen', [('auto', 'mix'), ('refit', 'refit')])
def test_too_few_to_tell(mode, chosen, pools, many, reader):
    settings = InjectionSettings(mode=mode)
    found = judge_images(tiny_classifier(), pools['one'], many, settings, reader)
    assert (found['mode'], found['generated'], found['control']) == (chosen, None, None)
    assert found['why'].startswith('There are too few images to probe')


def test_pooled_features(real, reader):
    """Each image by itself through the network in eval mode; draws depend on the seed alone."""
    model = tiny_classifier().train()
    plain = pooled_features(model, real, [7, 3, 5], reader, batch_size=2)
    assert plain.shape == (3, 64) and plain.dtype == np.float32
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    model.eval()
    for row, i in zip(plain, [7, 3, 5], strict=True):
        pixels = np.array(Image.open(real.get_data_info(i)['img_path'])).transpose(2, 0, 1)
        with torch.no_grad():
            seen = model.backbone(((torch.from_numpy(pixels) - mean) / std)[None])[-1]
        assert np.allclose(row, seen.mean(dim=(2, 3))[0].numpy(), atol=1e-4)
    drawn = [
        pooled_features(model, real, [7, 3], real.pipeline, seed, batch_size=size)
        for seed, size in ((0, 2), (0, 1), (1, 2))
    ]
    assert np.allclose(drawn[0], drawn[1], atol=1e-4)
    assert not np.allclose(drawn[0], drawn[2], atol=1e-2)
    assert not np.allclose(drawn[0], plain[:2], atol=1e-2)


def test_the_probe_sees_as_many_of_each_class(pools, many, reader, monkeypatch):
    """Else it would tell classes apart."""
    seen = []

    def spy(model, dataset, indices, *others):
        seen.append([dataset.get_data_info(i)['gt_label'] for i in indices])
        return pooled_features(model, dataset, indices, *others)

    monkeypatch.setattr('mmgap.injection.judge.pooled_features', spy)
    uneven = [*range(0, 40, 2), 1, 3, 5, 7]
    few = SyntheticDataset(pools['strange'].pool, pipeline=reader.transforms, indices=uneven)
    judge_images(tiny_classifier(), few, many, InjectionSettings(), reader)
    assert [sum(labels) for labels in seen[1:]] == [4, 4]
    assert [len(labels) for labels in seen[1:]] == [24, 24]


def test_what_cannot_be_probed(pools, many, reader):
    model = tiny_classifier()
    model.extract_feat = lambda inputs: [][0]
    found = judge_images(model, pools['same'], many, InjectionSettings(), reader)
    assert (found['mode'], found['generated']) == ('mix', None)
    assert 'is not known (IndexError: list index out of range)' in found['why']
    with pytest.raises(ValueError, match="mode='auto' needs features .* choose a mode"):
        judge_images(model, pools['same'], many, InjectionSettings(mode='auto'), reader)
