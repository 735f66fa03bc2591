# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from mmengine.registry import init_default_scope

from mmgap.datasets import SyntheticDataset
from mmgap.manifest import ManifestReader
from mmgap.pool import SamplePool
from mmgap.registry import DATASETS
from tests.support.pools import ABOUT, fill_pool, picture


def test_samples_and_pipeline(tmp_path):
    pool = fill_pool(tmp_path, 5)
    config = dict(
        type='mmgap.SyntheticDataset', pool=str(tmp_path), metainfo=dict(classes=('a', 'b'))
    )
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = DATASETS.build(dict(config, pipeline=pipeline))
    assert len(dataset) == 5 and dataset.metainfo['classes'] == ('a', 'b')
    assert dataset.get_data_info(3) == dict(
        img_path=str(pool.path(pool.samples[3])),
        gt_label=1,
        prompt_id='p1@0',
        source_index=pool.samples[3].source_index,
        round=0,
        sample_idx=3,
    )
    packed = dataset[3]
    assert packed['inputs'].shape == (3, 6, 5) and packed['data_samples'].gt_label.item() == 1
    assert len(SyntheticDataset(str(tmp_path), budget=2)) == 2


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no samples in manifest.jsonl'):
        SyntheticDataset(str(tmp_path / 'none'))
    fill_pool(tmp_path, 3)
    with pytest.raises(ValueError, match='budget=4, but .* has 3 samples'):
        SyntheticDataset(str(tmp_path), budget=4)
    with pytest.raises(ValueError, match='budget must be at least 1, got 0'):
        SyntheticDataset(str(tmp_path), budget=0)
    SamplePool(tmp_path).path(SamplePool(tmp_path).samples[1]).unlink()
    with pytest.raises(ValueError, match='000001.png, which is missing'):
        SyntheticDataset(str(tmp_path))


def test_a_label_means_the_class_that_was_drawn(tmp_path):
    """Also where the data have other classes by now, or in another order."""
    pool = SamplePool(tmp_path)
    for label, name in ((0, 'cat'), (1, 'dog')):
        pool.append(picture(label), **dict(ABOUT, label=label, label_name=name))
    assert len(SyntheticDataset(str(tmp_path), metainfo=dict(classes=('cat', 'dog')))) == 2
    assert len(SyntheticDataset(str(tmp_path))) == 2  # data without names
    for classes in (('bear', 'cat', 'dog'), ('dog', 'cat')):
        with pytest.raises(ValueError, match=f"drawn as class 0, 'cat', and .* is '{classes[0]}'"):
            SyntheticDataset(str(tmp_path), metainfo=dict(classes=classes))
    fill_pool(tmp_path / 'older', 3)  # without names
    assert len(SyntheticDataset(str(tmp_path / 'older'), metainfo=dict(classes=('b', 'a')))) == 3


def infos_of(dataset: SyntheticDataset) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def test_a_refresh_is_as_reading_anew(tmp_path, monkeypatch):
    """Whatever has happened to the pool; what was read and is as it was is not looked at again."""
    looked_at = []
    check = ManifestReader._check_fields
    monkeypatch.setattr(
        ManifestReader, '_check_fields', lambda *a: (looked_at.append(a[1]), check(*a))
    )

    def anew(budget: int | None = None) -> list[dict]:
        return infos_of(SyntheticDataset(str(tmp_path), budget, metainfo=classes))

    classes = dict(classes=('a', 'b'))
    pool = fill_pool(tmp_path, 3)
    dataset = SyntheticDataset(str(tmp_path), metainfo=classes)
    limited = SyntheticDataset(str(tmp_path), 2, metainfo=classes)
    dropped = dict(ABOUT, kept=False, agreement=0.1, critic='c')
    for fields in (ABOUT, dropped, dict(ABOUT, label=1)):  # appended
        pool.append(picture(9), **fields)
        looked_at.clear()
        dataset.refresh()
        limited.refresh()
        assert set(looked_at) == {len(pool)} and infos_of(dataset) == anew()
        assert infos_of(limited) == anew(2)
    with pool.manifest.open('ab') as file:  # a line that is being written
        file.write(b'{"file": "images/0')
    dataset.refresh()
    assert len(dataset) == 5 and infos_of(dataset) == anew()
    again = SamplePool(tmp_path)
    again.keep(lambda number, _: number < 4)  # shorter
    dataset.refresh()
    assert len(dataset) == 4 and infos_of(dataset) == anew()
    lines = again.manifest.read_text().replace('"label": 1', '"label": 0')
    again.manifest.write_text(lines)  # of the same length
    dataset.refresh()
    assert infos_of(dataset) == anew() and not any(i['gt_label'] for i in infos_of(dataset))
    wrong = again.append(picture(9), **dict(ABOUT, label=7))
    for _ in range(2):  # not only once
        with pytest.raises(ValueError, match=f'{wrong.file} has label 7, which is none of the 2'):
            dataset.refresh()
