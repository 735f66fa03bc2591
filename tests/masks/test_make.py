# SPDX-License-Identifier: Apache-2.0
"""tools/dataset_converters/masks.py: from images without masks to sources of generation."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmgap.datasets import MaskedFolders, Waterbirds
from mmgap.masks import SamSegmenter
from mmgap.sources import SourceSet
from tests.support.miniature import draw_waterbirds
from tests.support.tiny import save_tiny_sam

ROOT = Path(__file__).parents[2]

# A segmenter of a user's own: it fills the boxes, and can be stopped.
FILLER = """
import numpy as np
from mmgap.masks import Segmenter

class Filler(Segmenter):
    calls = 0

    def __init__(self, stop_after=10**9):
        self.stop_after = stop_after

    def __call__(self, image, boxes):
        Filler.calls += 1
        self.stop_after -= 1
        if self.stop_after < 0:
            raise KeyboardInterrupt
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width] + 0.5
        if not len(boxes):
            return np.hypot(x - width / 2, y - height / 2) < height / 4
        inside = [(x > l) & (x < r) & (y > t) & (y < b) for l, t, r, b in boxes]
        return np.any(inside, axis=0)
"""


@pytest.fixture
def masks(monkeypatch, capsys, tmp_path):
    """Run the tool in this process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'filler', raising=False)
    (tmp_path / 'filler.py').write_text(FILLER)
    from mmgap.masks import make as tool

    def run(*args: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, 'argv', ['masks.py', *map(str, args)])
        capsys.readouterr()
        try:
            tool.main()
        except SystemExit as stop:
            printed = capsys.readouterr()
            said = printed.err if isinstance(stop.code, int) else stop.code
            return SimpleNamespace(failed=True, said=said)
        return SimpleNamespace(failed=False, said=capsys.readouterr().out)

    return run


def as_annotators(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey levels as those of CUB: steps of a fifth, the bird above the half."""
    bird = rng.choice([153, 204, 255], mask.shape)
    return np.where(mask > 127, bird, rng.choice([0, 51, 102], mask.shape)).astype(np.uint8)


@pytest.fixture
def cub(tmp_path) -> SimpleNamespace:
    """Waterbirds without masks, CUB's segmentations of its birds, and the masks as they were."""
    root = draw_waterbirds(tmp_path / 'waterbirds', per_group=2)
    rng = np.random.default_rng(0)
    truth = {}
    for number, path in enumerate(sorted(root.rglob('*_mask.png'))):
        mask = np.array(Image.open(path))
        truth[path] = mask
        grey = Image.fromarray(as_annotators(mask, rng))
        stored = (grey, grey.convert('RGBA'), grey.convert('LA'), grey.convert('P'))[number % 4]
        name = path.name.replace('_mask', '')
        target = tmp_path / 'segmentations' / path.parent.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        stored.save(target)
        path.unlink()
    return SimpleNamespace(root=root, segmentations=tmp_path / 'segmentations', truth=truth)


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


def test_segmentations_become_sources_of_the_same_pixels(masks, cub, tmp_path):
    drawn = draw_waterbirds(tmp_path / 'drawn', per_group=2)
    done = masks(cub.root, '--segmentations', cub.segmentations)
    assert (
        not done.failed and f'{len(cub.truth)} of {len(cub.truth)} images have masks' in done.said
    )
    for path, mask in cub.truth.items():
        made = Image.open(path)
        assert made.mode == 'L'
        np.testing.assert_array_equal(np.array(made), mask)
    sources = [SourceSet(Waterbirds(str(root), 'train'), (40, 48)) for root in (cub.root, drawn)]
    made, expected = (part.load(range(len(part))) for part in sources)
    assert len(made) == 10 and made.masks.any() and (made.masks == expected.masks).all()
    assert (made.images == expected.images).all()
    # In a folder of their own they are the same, and found there.
    assert not masks(cub.root, '--segmentations', cub.segmentations, '--out', tmp_path / 'm').failed
    apart = SourceSet(Waterbirds(str(cub.root), 'train', mask_dir=str(tmp_path / 'm')), (40, 48))
    assert (apart.load(range(10)).masks == expected.masks).all()


def test_the_sheet_outlines_what_is_kept(masks, cub):
    done = masks(cub.root, '--segmentations', cub.segmentations)
    sheet = cub.root.with_name('waterbirds_contact_sheet.png')
    assert str(sheet) in done.said
    pixels = np.array(Image.open(sheet))
    red = (pixels == (255, 0, 0)).all(axis=2)
    # 26 thumbnails of 160 x 160: an outline has a few hundred pixels, a bird a few thousand.
    assert 26 * 50 < red.sum() < 26 * 1000
    # It is no image of the data, and neither are masks.
    shutil.rmtree(cub.segmentations)
    done = masks(cub.root.parent, '--segmenter', 'type=filler.Filler')
    assert '26 of 26 images have masks, 26 of them from before' in done.said


def test_faults_are_listed_before_anything_is_written(masks, cub):
    paths = sorted(cub.segmentations.rglob('*.png'))
    gone, small, empty, broken, deep, full = paths[:6]
    sizes = {p: Image.open(p).size for p in paths}
    gone.unlink()
    Image.new('L', (10, 12), 255).save(small)
    Image.new('L', sizes[empty], 102).save(empty)
    broken.write_bytes(b'no picture')
    numbers = np.zeros(sizes[deep][::-1], np.uint16)
    numbers[4:40, 4:40], numbers[20:30, 20:30] = 3, 7
    Image.fromarray(numbers).save(deep)
    Image.new('L', sizes[full], 255).save(full)
    before = files(cub.root)
    done = masks(cub.root, '--segmentations', cub.segmentations)
    assert done.failed and f'6 of {len(paths)} images can have no mask' in done.said
    (drawn_size,) = {f'{w}x{h}' for w, h in [sizes[small]]}
    for path, words in (
        (gone, f'there is no {gone}'),
        (small, f'the image is {drawn_size}, its segmentation 10x12'),
        (empty, 'its mask is empty'),
        (broken, 'it is empty, or of no format that Pillow reads'),
        (deep, 'holds the values 0, 3, 7'),
        (full, 'fills 100% of the middle square'),
    ):
        name = f'{path.parent.name}/{path.stem}.jpg'
        (line,) = [line for line in done.said.splitlines() if line.startswith(f'  {name}: ')]
        assert words in line
    assert '--skip-faulty' in done.said and files(cub.root) == before

    done = masks(cub.root, '--segmentations', cub.segmentations, '--skip-faulty')
    assert not done.failed and '6 have none' in done.said
    written = set(files(cub.root)) - set(before)
    lacking = {cub.root / p.parent.name / f'{p.stem}_mask.png' for p in paths[:6]}
    assert written == set(cub.truth) - lacking
    # What is drawn by hand is kept, and mends the set.
    for path in lacking:
        Image.fromarray(cub.truth[path]).save(path)
    before = files(cub.root)
    done = masks(cub.root, '--segmentations', cub.segmentations)
    assert not done.failed and files(cub.root) == before
    assert f'{len(paths)} of them from before' in done.said


@pytest.fixture
def animals(tmp_path) -> Path:
    """Two classes of three pictures of 60 x 40."""
    rng = np.random.default_rng(0)
    for name in ('ape', 'bee'):
        (tmp_path / 'animals' / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'animals' / name / f'{i}.jpg')
    return tmp_path / 'animals'


def megadetector(path: Path, boxes: dict[str, list]) -> Path:
    images = [
        dict(
            file=f'camera\\{name}' if '0' in name else f'camera/{name}',
            detections=[
                dict(category='1', conf=0.9, bbox=box),
                dict(category='1', conf=0.1, bbox=[0, 0, 1, 1]),
                dict(category='2', conf=0.9, bbox=[0, 0, 1, 1]),
            ],
        )
        for name, box in boxes.items()
    ]
    images.append(dict(file='camera/unread.jpg', failure='cannot be read', detections=None))
    path.write_text(json.dumps(dict(images=images)))
    return path


def test_megadetectors_boxes(masks, animals, tmp_path):
    names = [f'{animal}/{i}.jpg' for animal in ('ape', 'bee') for i in range(3)]
    boxes = {name: [0.1 * i, 0.25, 0.4, 0.5] for i, name in enumerate(names)}
    found = megadetector(tmp_path / 'boxes.json', boxes)
    done = masks(animals, '--segmenter', 'type=filler.Filler', '--boxes', found)
    assert not done.failed, done.said
    condition = SourceSet(MaskedFolders(str(animals)), (40, 60)).load(range(6))
    for i, mask in enumerate(condition.masks):
        expected = np.zeros((40, 60), bool)
        expected[10:30, 6 * i : 6 * i + 24] = True
        np.testing.assert_array_equal(mask[0].numpy(), expected)


def test_cubs_boxes(masks, cub, tmp_path):
    images = sorted(cub.root.rglob('*.jpg'))
    lines = [f'{i} {path.relative_to(cub.root).as_posix()}' for i, path in enumerate(images, 1)]
    rows = []
    for i, path in enumerate(images, 1):
        mask = cub.truth[path.with_name(f'{path.stem}_mask.png')]
        (top, bottom), (left, right) = (
            (line.nonzero()[0].min(), line.nonzero()[0].max() + 1)
            for line in ((mask > 0).any(axis=1), (mask > 0).any(axis=0))
        )
        rows.append(f'{i} {left}.0 {top}.0 {right - left}.0 {bottom - top}.0')
    (tmp_path / 'images.txt').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'bounding_boxes.txt').write_text('\n'.join(rows) + '\n')
    options = ('--segmenter', 'type=filler.Filler', '--boxes', tmp_path / 'bounding_boxes.txt')
    assert not masks(cub.root, *options).failed
    for path, truth in cub.truth.items():
        made = np.array(Image.open(path)) > 0
        assert made[truth > 0].all()
        assert made.sum() == np.prod([np.ptp(edge.nonzero()[0]) + 1 for edge in edges(truth)])
    # Boxes of other images are not taken for these.
    shutil.rmtree(tmp_path / 'm', ignore_errors=True)
    (tmp_path / 'bounding_boxes.txt').write_text('1 500 400 80 90\n')
    done = masks(cub.root, *options, '--out', tmp_path / 'm')
    assert done.failed and 'its box (500, 400, 580, 490) does not lie within its' in done.said
    assert 'bounding_boxes.txt has no box for it' in done.said and not (tmp_path / 'm').exists()


def edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (mask > 0).any(axis=0), (mask > 0).any(axis=1)


def test_a_killed_run_goes_on(masks, animals, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        masks(animals, '--segmenter', 'type=filler.Filler', 'stop_after=4')
    before = files(animals)
    assert len(before) == 6 + 4
    import filler

    filler.Filler.calls = 0
    done = masks(animals, '--segmenter', 'type=filler.Filler')
    assert not done.failed and filler.Filler.calls == 2
    assert '6 of 6 images have masks, 4 of them from before' in done.said
    after = files(animals)
    assert len(after) == 12 and before.items() <= after.items()
    masks(animals, '--segmenter', 'type=filler.Filler', '--out', tmp_path / 'whole')
    for path in animals.rglob('*_mask.png'):
        name = path.relative_to(animals).with_name(path.name.replace('_mask', ''))
        assert path.read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_masks_that_came_out_badly(masks, animals, tmp_path):
    boxes = {f'ape/{i}.jpg': [0.2, 0.2, 0.5, 0.5] for i in range(3)}
    boxes.update({'bee/0.jpg': [0, 0, 1, 1], 'bee/1.jpg': [0.5, 0.5, 0.001, 0.001]})
    found = megadetector(tmp_path / 'boxes.json', boxes)
    whole = (animals / 'ape' / '2.jpg').read_bytes()
    (animals / 'ape' / '2.jpg').write_bytes(whole[: len(whole) // 2])  # its head is there
    options = ('--segmenter', 'type=filler.Filler', '--boxes', found)
    done = masks(animals, *options)
    assert done.failed and '1 of 6 images can have no mask' in done.said
    assert f'bee/2.jpg: {found} has no box for it' in done.said
    assert not list(animals.rglob('*_mask.png'))
    done = masks(animals, *options, '--skip-faulty')
    assert not done.failed and '2 of 6 images have masks' in done.said
    for words in (
        '4 have none',
        '2.jpg cannot be read: image file is truncated',
        'bee/0.jpg: its mask fills 100% of the middle square',
        'bee/1.jpg: its mask is empty',
        'bee/2.jpg:',
    ):
        assert words in done.said
    names = sorted(p.relative_to(animals).as_posix() for p in animals.rglob('*_mask.png'))
    assert names == ['ape/0_mask.png', 'ape/1_mask.png']


def test_sam(masks, animals, tmp_path):
    """The real thing from a folder, told the centre."""
    sam = save_tiny_sam(tmp_path / 'sam')
    out = tmp_path / 'masks'
    settings = ('--segmenter', 'type=mmgap.SamSegmenter', f'model={sam}', 'device=cpu')
    done = masks(animals, *settings, '--out', out)
    assert not done.failed and '6 of 6 images have masks' in done.said
    segmenter = SamSegmenter(str(sam), device='cpu')
    sources = SourceSet(MaskedFolders(str(animals), mask_dir=str(out)), (40, 60))
    for i, image in enumerate(sorted(animals.rglob('*.jpg'))):
        expected = segmenter(np.array(Image.open(image)), np.zeros((0, 4)))
        np.testing.assert_array_equal(sources.load([i]).masks[0, 0].numpy(), expected)


@pytest.mark.parametrize(
    'options, words',
    [
        (
            ['--segmenter', 'mmgap.SamSegmenter'],
            'takes key=value …, got mmgap.Sam',
        ),
        (['--segmenter', 'model=x'], 'must say type='),
        (['--segmenter', 'type=mmgap.Sam', 'model=x'], 'mmgap.Sam'),
        (['--segmenter', 'type=mmgap.SamSegmenter'], "'model'"),
        (
            ['--segmenter', 'type=mmgap.SamSegmenter', 'model=/no/such'],
            "model='/no/such' is neither a folder nor a hub id",
        ),
        (['--segmentations', 'nowhere'], 'segmentations nowhere is not a folder'),
        (['--segmentations', '.'], 'none of 6 images has a segmentation in .; the first would be'),
        (['--segmentations', '.', '--boxes', 'a.json'], '--boxes is for --segmenter'),
        (['--segmenter', 'type=filler.Filler', '--boxes', 'a.json'], 'a.json does not exist'),
        (['--segmenter', 'type=filler.Filler', '--boxes', 'list.json'], 'batch output format of'),
        (['--segmenter', 'type=filler.Filler', '--boxes', 'filler.py'], 'is neither a .json file'),
        (['--segmenter', 'type=filler.Filler', '--boxes', 'cub.txt'], 'images.txt does not exist'),
        (['--segmenter', 'type=filler.Filler', '--out', 'animals'], 'is the folder of the images'),
        (['--segmentations', 'animals'], '--segmentations animals is the folder of the images'),
        ([], '--segmentations --segmenter is required'),
    ],
)
def test_bad_input(masks, animals, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'list.json').write_text('[]')
    (tmp_path / 'cub.txt').write_text('1 2 3 4 5')
    before = files(tmp_path)
    done = masks('animals', *options)
    assert done.failed and words in done.said, done.said
    assert files(tmp_path) == before


def test_numbers_of_classes(masks, animals, tmp_path):
    """Nobody but a person can tell which is the object."""
    classes = np.full((40, 60), 2, np.uint8)
    classes[5:20, 5:20], classes[20:30, 20:40], classes[:2] = 15, 9, 255
    for path in animals.rglob('*.jpg'):
        named = tmp_path / 'classes' / path.relative_to(animals).with_suffix('.png')
        named.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(classes).save(named)
    done = masks(animals, '--segmentations', tmp_path / 'classes')
    assert done.failed and '6 of 6 images can have no mask' in done.said
    done = masks(animals, '--segmentations', tmp_path / 'classes', '--object', 15, 9)
    assert not done.failed, done.said
    made = np.array(Image.open(animals / 'ape' / '0_mask.png'))
    assert np.array_equal(made > 0, np.isin(classes, (9, 15)))


def test_bad_images(masks, animals, tmp_path):
    settings = ('--segmenter', 'type=filler.Filler')
    (tmp_path / 'empty').mkdir()
    assert 'empty has no images' in masks(tmp_path / 'empty', *settings).said
    shutil.copy(animals / 'ape' / '0.jpg', animals / 'ape' / '0.jpeg')
    done = masks(animals, *settings)
    assert done.failed and 'ape/0.jpeg and ape/0.jpg would have the same mask' in done.said
    (animals / 'ape' / '0.jpeg').unlink()
    found = tmp_path / 'boxes.json'
    twice = [dict(file=f'{place}/ape/0.jpg', detections=[]) for place in ('here', 'there')]
    found.write_text(json.dumps(dict(images=twice)))
    done = masks(animals, *settings, '--boxes', found)
    assert 'two images of this name: here/ape/0.jpg and there/ape/0.jpg' in done.said
