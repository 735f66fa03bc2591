# SPDX-License-Identifier: Apache-2.0
"""``check`` finds what would go wrong, and says what to do."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image, ImageOps

from mmgap.checks import trials
from mmgap.checks.looks import (
    compare_splits,
    load_start,
    look_at_schedule,
    look_at_sources,
)
from mmgap.datasets import Waterbirds
from mmgap.injection import InjectionSettings
from mmgap.sources import SourceSet
from tests.support.commands import ROOT, Finished, run_command
from tests.support.miniature import convert_iwildcam, draw_iwildcam, draw_taskonomy, draw_waterbirds
from tests.support.pools import fill_pool
from tests.support.small_config import small_config
from tests.support.tiny import tiny_classifier

WATERBIRDS = 'configs/ap_resnet50_waterbirds.py'
TOYBIRDS = 'configs/ap_resnet18_toybirds.py'
HEAD = 'model.head.in_channels=512'
# The same way through search and synthesis, in less time.
QUICK = [
    'custom_hooks.0.search.num_inference_steps=2',
    'custom_hooks.0.search.batch_size=2',
    'custom_hooks.0.synthesis.num_inference_steps=2',
    'custom_hooks.0.synthesis.batch_size=2',
]


def check(config: str, *changes: str, tiny: bool = False) -> Finished:
    return run_command(
        'check', ROOT / config, *(['--tiny'] * tiny), '--cfg-options', *QUICK, *changes
    )


@pytest.fixture(scope='module')
def drawn(tmp_path_factory) -> Path:
    return draw_waterbirds(tmp_path_factory.mktemp('waterbirds'), per_group=4)


def data_in(root: Path) -> list[str]:
    places = [f'{part}_dataloader.dataset.data_root={root}' for part in ('train', 'val', 'test')]
    whole = ('correlated=False', 'num_samples=None')
    return places + [f'train_dataloader.dataset.{setting}' for setting in whole]


def test_ready(drawn):
    smaller = ['model.backbone.depth=18', HEAD]
    said = check(WATERBIRDS, *data_in(drawn), *smaller, tiny=True).check()
    assert 'train data: 18 samples: landbird-land 8, landbird-water 1, waterbird-land 1' in said
    assert 'masks of 16 sources keep' in said and 'ResNet' not in said
    assert 'ImageClassifier, 11.2 M parameters' in said
    assert said.endswith('ready\n')


@pytest.mark.parametrize(
    'mode, schedule, noted',
    [
        ('refit', None, True),
        ('mix', None, False),
        ('refit', dict(type='MultiStepLR', milestones=[1]), False),
    ],
)
def test_a_rate_that_does_not_fall(mode, schedule, noted):
    config = Config(dict(param_scheduler=schedule))
    injection = InjectionSettings(mode=mode)
    _, said = look_at_schedule(config, injection, 'classes', tiny_classifier())
    assert ('NOTE: when images come, the learning rate is still 100%' in said) == noted


def pool_config(data: Path, folder: Path, images: int = 4, **hook) -> Path:
    """A config file that takes a pool as it is, of images of the two classes in turn."""
    pool = fill_pool(folder / 'pool', images).folder
    config = small_config(data, Path('none'), folder / 'run')
    config.custom_hooks = [dict(type='mmgap.InjectionHook', pool=str(pool), **hook)]
    config.dump(folder / 'config.py')
    return folder / 'config.py'


def test_a_config_that_takes_a_pool(drawn, tmp_path):
    config = pool_config(drawn, tmp_path, injection=dict(mode='refit', steps=7))
    said = run_command('check', config).check()
    assert "ok     injection: mode 'refit'" in said
    assert f'ok     pool: {tmp_path / "pool"}: 4 samples: landbird 2, waterbird 2\n' in said
    assert 'ok     refit: 7 steps of the last layer' in said
    assert 'test sample: went through' in said and said.endswith('ready\n')
    assert 'generator' not in said  # and there are no weights of one

    mixed = Config.fromfile(config)
    mixed.custom_hooks = []
    mixed.train_dataloader.dataset = dict(
        type='mmgap.SyntheticMixDataset',
        dataset=mixed.train_dataloader.dataset,
        pool=str(tmp_path / 'pool'),
        budget=3,
    )
    mixed.dump(tmp_path / 'mixed.py')
    said = run_command('check', tmp_path / 'mixed.py').check()
    assert 'by a SyntheticMixDataset without a hook' in said
    assert f'{tmp_path / "pool"}: 3 samples: landbird 2, waterbird 1\n' in said


@pytest.mark.parametrize(
    'images, hook, words',
    [
        (4, dict(budget=5), 'WRONG  pool: .*budget=5.* has 4 samples'),
        (0, {}, 'WRONG  pool: .*pool=.* has no samples'),
        (1, dict(injection=dict(mode='refit')), "WRONG  pool: .*no images of .*'waterbird'"),
        (4, dict(injection=dict(mode='refitt')), "WRONG  injection: .*mode .*'refitt'"),
        (
            4,
            dict(injection=dict(mode='refit', last_layer='hed.')),
            "WRONG  refit: .*last_layer='hed.' names no parameter",
        ),
    ],
)
def test_a_pool_that_does_not_do(images, hook, words, drawn, tmp_path):
    done = run_command('check', pool_config(drawn, tmp_path, images, **hook))
    assert done.code == 1 and re.search(words, done.output)


def test_no_such_config(tmp_path):
    done = run_command('check', tmp_path / 'nothing.py')
    assert done.code == 1 and "nothing.py' does not exist" in done.output


# One more whole check: that of a config whose terms begin late, with other data.
@pytest.mark.slow
def test_terms_that_begin_late(tmp_path):
    convert_iwildcam(draw_iwildcam(tmp_path / 'wilds', sequences=2), tmp_path / 'data')
    config = 'configs/gap_resnet50_iwildcam.py'
    parts = ('train', 'val', 'test')
    places = [f'{part}_dataloader.dataset.data_root={tmp_path / "data"}' for part in parts]
    said = check(config, *places, 'model.backbone.depth=18', HEAD, tiny=True).check()
    assert 'feedback: AdversarialLoss' in said and 'search step' in said


def damage_masks(root: Path) -> None:
    with (root / 'metadata.csv').open(newline='') as file:
        name = next(row['img_filename'] for row in csv.DictReader(file) if row['split'] == '0')
    (root / name.replace('.jpg', '_mask.png')).unlink()


def rename_masks(root: Path) -> None:
    for mask in list(root.rglob('*_mask.png')):
        target = root / 'masks' / mask.relative_to(root).parent / mask.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(mask, target)  # CUB's names would have no _mask


def change_rows(change):
    def damage(root: Path) -> None:
        with (root / 'metadata.csv').open(newline='') as file:
            rows = change(list(csv.DictReader(file)))
        with (root / 'metadata.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return damage


def only_landbirds(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row['y'] == '0']


def other_column(rows: list[dict]) -> list[dict]:
    return [{('label' if k == 'y' else k): v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize(
    'damage, settings, words',
    [
        (
            damage_masks,
            [],
            [
                '1 of 18 masks of split',
                '`mmgap masks`',
                'mask_dir=',
                'with_masks=False',
            ],
        ),
        (
            rename_masks,
            ['train_dataloader.dataset.mask_dir=masks'],
            ['18 of 18 masks of split', 'the first is', 'masks/', 'other files like', '_mask.png'],
        ),
        (change_rows(only_landbirds), [], ['no images of class waterbird']),
        (change_rows(other_column), [], ["missing column(s) ['y']", 'label']),
    ],
)
def test_faults_of_the_data(damage, settings, words, drawn, tmp_path):
    root = shutil.copytree(drawn, tmp_path / 'data')
    damage(root)
    done = check(WATERBIRDS, *data_in(root), *settings, tiny=True)
    assert done.code == 1 and 'to mend' in done.output
    wrong = ''.join(line for line in done.output.splitlines() if line.startswith('WRONG'))
    assert all(part in wrong for part in words), done.output


def test_splits_are_compared():
    """What labels mean, and whether an image is drawn from and evaluated on."""

    class Split:
        def __init__(self, *names, classes=('a', 'b')) -> None:
            self.names, self.metainfo = names, dict(classes=classes)

        def __len__(self) -> int:
            return len(self.names)

        def get_data_info(self, i: int) -> dict:
            return dict(img_path=self.names[i])

    class Sources(Split):
        label_type, classes = 'classes', ('a', 'b')

        @property
        def dataset(self):
            return self

    sources = Sources('1', '2', '3')
    assert compare_splits(sources, dict(val=Split('4'), test=None))[1].startswith('no source')
    said = compare_splits(sources, dict(val=Split('4'), test=Split('2', '3', '5')))[1]
    assert said == 'NOTE: 2 sources are also test data'
    with pytest.raises(ValueError, match=r"classes \['b'\], the training data \['a', 'b'\]"):
        compare_splits(sources, dict(test=Split('4', classes=('b',))))


def test_faults_of_the_machine_and_the_weights(on_cpu):
    done = check(TOYBIRDS, 'model.backbone.depth=34')
    assert done.code == 1 and done.output.endswith('1 things to mend\n'), done.output
    assert "'mmgap://toybirds-resnet18': they are of another architecture" in done.output
    done = check(TOYBIRDS, 'custom_hooks.0.generator.device=cuda')
    assert "['custom_hooks.0.generator.device'] ask for a GPU" in done.output
    assert done.code == 1 and 'to mend' in done.output
    faults = ['optim_wrapper.type=AmpOptimWrapper', 'custom_hooks.0.search.steps=0']
    faults.append('test_dataloader.dataset.pipeline.1.meta_keys=()')
    done = check(TOYBIRDS, *faults)
    assert "['optim_wrapper.type'] ask for a GPU" in done.output
    assert 'ok     search step: none: search.steps=0' in done.output
    assert 'WRONG  test sample: KeyError: GroupAccuracy: a sample has no `group`' in done.output


# Steps of 24 images, so that their memory is more than what PyTorch has left over from others.
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read from /proc')
def test_memory_grows_with_the_batch(on_cpu):
    """With the packaged weights, nothing replaced."""
    needed = []
    for batch in (24, 2):  # what the first leaves behind must not help
        settings = f'search.num_inference_steps=5 search.batch_size={batch}'.split()
        done = check(TOYBIRDS, *(f'custom_hooks.0.{setting}' for setting in settings))
        assert done.check().endswith('ready\n')
        needed.append(
            float(re.search(rf'about (.*) GiB with search.batch_size={batch} ', done.output)[1])
        )
    assert needed[0] > needed[1] + 0.5


def test_inverted_masks(drawn, tmp_path):
    root = shutil.copytree(drawn, tmp_path / 'data')
    sources = SourceSet(Waterbirds(str(root), 'train'), (64, 64))
    assert 'inverted' not in look_at_sources(sources)[1]
    for path in root.rglob('*_mask.png'):
        ImageOps.invert(Image.open(path).convert('L')).save(path)
    sources = SourceSet(Waterbirds(str(root), 'train'), (64, 64))
    assert 'Are they inverted?' in look_at_sources(sources)[1]


# One more whole check: that of depth, with a ControlNet.
@pytest.mark.slow
def test_depth(tmp_path):
    buildings = ('allensville', 'collierville', 'ihlen')
    data = draw_taskonomy(tmp_path / 'data', buildings=buildings, views=4, size=48)
    config = 'configs/ap_unet_taskonomy-depth.py'
    settings = [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'val', 'test')]
    settings += [f'{part}_dataloader.dataset.buildings=None' for part in ('train', 'val', 'test')]
    settings += ['model.backbone.base_channels=4', 'model.decode_head.in_channels=4']
    done = check(config, *settings, 'model.decode_head.channels=4', tiny=True)
    assert 'depth of' in done.check() and 'test sample: went through' in done.output


def test_too_little_memory(monkeypatch):
    peaks = iter([(1.0, 4 << 30), (0.5, 4 << 30), (0.9, 5 << 30)])
    monkeypatch.setattr(trials, 'measure', lambda *_: next(peaks))
    monkeypatch.setattr(trials, 'memory', lambda: 10 << 30)
    done = check(TOYBIRDS, 'custom_hooks.0.search.batch_size=24')
    assert done.code == 1 and done.output.endswith('1 things to mend\n'), done.output
    assert 'batch_size=24 would take about 27.0 GiB, and there are 10.0 GiB' in done.output
    assert 'set search.batch_size=7' in done.output


def test_training_may_start_from_weights_with_another_head(tmp_path):
    """As from ImageNet's; in training MMEngine takes what fits, and so does the check."""
    path, other = tmp_path / 'other_head.pth', tiny_classifier(5)
    torch.nn.init.constant_(other.backbone.conv1.weight, 0.5)
    torch.save(dict(state_dict=other.state_dict()), path)
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    head = dict(type='LinearClsHead', num_classes=2, in_channels=64)
    neck = dict(type='GlobalAveragePooling')
    model = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    started = load_start(Config(dict(model=model)), str(path))
    assert (started.backbone.conv1.weight == 0.5).all() and started.head.fc.weight.shape[0] == 2
    torch.save(dict(state_dict={'linear.weight': torch.zeros(3)}), path)
    with pytest.raises(ValueError, match='other_head.pth. has no weight of the model'):
        load_start(Config(dict(model=model)), str(path))
