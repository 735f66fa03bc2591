# SPDX-License-Identifier: Apache-2.0
"""tools/check.py finds what would go wrong, and says what to do."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageOps

from tests.support.miniature import convert_iwildcam, draw_iwildcam, draw_taskonomy, draw_waterbirds

ROOT = Path(__file__).parents[1]
WATERBIRDS = 'configs/gap_resnet50_waterbirds.py'
HEAD = 'model.head.in_channels=512'


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the tool in this process."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import check as tool

    def run(config, *options, **replaced):
        for name, function in replaced.items():
            monkeypatch.setattr(tool, name, function)
        monkeypatch.setattr(sys, 'argv', ['check.py', str(ROOT / config), *options])
        capsys.readouterr()
        try:
            tool.main()
        except SystemExit as stop:
            return SimpleNamespace(failed=str(stop), said=capsys.readouterr().out)
        return SimpleNamespace(failed=None, said=capsys.readouterr().out)

    return run


@pytest.fixture(scope='module')
def drawn(tmp_path_factory) -> Path:
    return draw_waterbirds(tmp_path_factory.mktemp('waterbirds'), per_group=4)


def options(root: Path, *further: str) -> list[str]:
    places = [f'{part}_dataloader.dataset.data_root={root}' for part in ('train', 'val', 'test')]
    whole = ('correlated=False', 'num_samples=None')
    places += [f'train_dataloader.dataset.{setting}' for setting in whole]
    return ['--tiny', '--cfg-options', *places, *further]


def test_ready(check, drawn):
    done = check(WATERBIRDS, *options(drawn))
    assert done.failed is None, done.said
    said = done.said
    assert 'train data: 18 samples: landbird-land 8, landbird-water 1, waterbird-land 1' in said
    assert 'masks of 16 sources keep' in said and 'ResNet' not in said
    assert 'ImageClassifier, 23.5 M parameters' in said
    assert said.endswith('ready\n')


@pytest.mark.slow
def test_terms_that_begin_late(check, tmp_path):
    convert_iwildcam(draw_iwildcam(tmp_path / 'wilds', sequences=2), tmp_path / 'data')
    config = 'configs/gap_resnet50_iwildcam.py'
    parts = ('train', 'val', 'test')
    places = [f'{part}_dataloader.dataset.data_root={tmp_path / "data"}' for part in parts]
    done = check(config, '--tiny', '--cfg-options', *places, 'model.backbone.depth=18', HEAD)
    assert done.failed is None, done.said
    assert 'feedback: AdversarialLoss' in done.said and 'search step' in done.said


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
                'dataset_converters/masks.py',
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
def test_faults_of_the_data(damage, settings, words, check, drawn, tmp_path):
    root = shutil.copytree(drawn, tmp_path / 'data')
    damage(root)
    done = check(WATERBIRDS, *options(root, *settings))
    assert 'to mend' in done.failed
    wrong = ''.join(line for line in done.said.splitlines() if line.startswith('WRONG'))
    assert all(part in wrong for part in words), done.said


def test_splits_are_compared(check):
    """What labels mean, and whether an image is drawn from and evaluated on."""
    import check as tool

    class Split:
        def __init__(self, *names, classes=('a', 'b')) -> None:
            self.names, self.metainfo = names, dict(classes=classes)

        def __len__(self) -> int:
            return len(self.names)

        def get_data_info(self, i: int) -> dict:
            return dict(img_path=self.names[i])

    class Sources(Split):
        kind, classes = 'classes', ('a', 'b')

        @property
        def dataset(self):
            return self

    sources = Sources('1', '2', '3')
    assert tool.compare_splits(sources, dict(val=Split('4'), test=None))[1].startswith('no source')
    said = tool.compare_splits(sources, dict(val=Split('4'), test=Split('2', '3', '5')))[1]
    assert said == 'NOTE: 2 sources are also test data'
    with pytest.raises(ValueError, match=r"classes \['b'\], the training data \['a', 'b'\]"):
        tool.compare_splits(sources, dict(test=Split('4', classes=('b',))))


def test_faults_of_the_machine_and_the_weights(check, on_cpu):
    config = 'configs/gap_resnet18_toybirds.py'
    done = check(config, '--cfg-options', 'model.backbone.depth=34')
    assert done.failed == '1 things to mend', done.said
    assert "'mmgap://toybirds-resnet18': they are of another architecture" in done.said
    done = check(config, '--cfg-options', 'custom_hooks.0.generator.device=cuda')
    assert "['custom_hooks.0.generator.device'] ask for a GPU" in done.said
    assert 'to mend' in done.failed
    faults = [
        'optim_wrapper.type=AmpOptimWrapper',
        'test_dataloader.dataset.pipeline.1.meta_keys=()',
    ]
    done = check(config, '--cfg-options', *faults)
    assert "['optim_wrapper.type'] ask for a GPU" in done.said
    assert 'WRONG  test sample: KeyError: GroupAccuracy: a sample has no `group`' in done.said


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read from /proc')
def test_memory_grows_with_the_batch(check, on_cpu):
    """With the packaged weights, nothing replaced."""
    needed = []
    for batch in (24, 2):  # what the first leaves behind must not help
        config = 'configs/gap_resnet18_toybirds.py'
        done = check(config, '--cfg-options', f'custom_hooks.0.search.batch_size={batch}')
        assert done.failed is None and done.said.endswith('ready\n'), done.said
        needed.append(
            float(re.search(rf'about (.*) GiB with search.batch_size={batch} ', done.said)[1])
        )
    assert needed[0] > needed[1] + 0.5


@pytest.mark.slow
def test_inverted_masks(check, drawn, tmp_path):
    root = shutil.copytree(drawn, tmp_path / 'data')
    for path in root.rglob('*_mask.png'):
        ImageOps.invert(Image.open(path).convert('L')).save(path)
    done = check(WATERBIRDS, *options(root))
    assert done.failed is None and 'Are they inverted?' in done.said


@pytest.mark.slow
def test_depth(check, tmp_path):
    buildings = ('allensville', 'collierville', 'ihlen')
    data = draw_taskonomy(tmp_path / 'data', buildings=buildings, views=4, size=48)
    config = 'configs/gap_unet_taskonomy-depth.py'
    settings = [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'val', 'test')]
    settings += [f'{part}_dataloader.dataset.buildings=None' for part in ('train', 'val', 'test')]
    settings += ['model.backbone.base_channels=4', 'model.decode_head.in_channels=4']
    done = check(config, '--tiny', '--cfg-options', *settings, 'model.decode_head.channels=4')
    assert done.failed is None, done.said
    assert 'depth of' in done.said and 'test sample: went through' in done.said


def test_too_little_memory(check):
    peaks = iter([(1.0, 4 << 30), (0.5, 4 << 30), (0.9, 5 << 30)])
    config = 'configs/gap_resnet18_toybirds.py'
    done = check(config, measure=lambda *_: next(peaks), memory=lambda: 10 << 30)
    assert done.failed == '1 things to mend', done.said
    assert 'batch_size=24 would take about 27.0 GiB, and there are 10.0 GiB' in done.said
    assert 'set search.batch_size=7' in done.said
