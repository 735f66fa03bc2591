# SPDX-License-Identifier: Apache-2.0
"""Pictures and depth maps that are broken, of another kind or of another size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mmgap.pool import SamplePool
from tests.soak.cases_data import train_pictures
from tests.soak.stage import Stage, case

DRAW = ('--text', 'a b', '--num', 2)


@case('pictures of zero bytes', 'generate')
def picture_zero_bytes(stage: Stage) -> None:
    refuse(stage, lambda path: path.write_bytes(b''), 'cannot be read')


@case('truncated JPEGs', 'generate')
def picture_truncated(stage: Stage) -> None:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])

    refuse(stage, cut, 'cannot be read', 'truncated')


@case('truncated JPEGs', 'check')
def picture_truncated_check(stage: Stage) -> None:
    root = stage.birds()
    for path in train_pictures(root):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    stage.checks_wrong(stage.config(root), says=[root, 'truncated'])


@case('text files named .jpg', 'generate')
def picture_is_text(stage: Stage) -> None:
    refuse(stage, lambda path: path.write_text('<html>not found</html>'), 'cannot be read')


@case('folders named .jpg', 'generate')
def picture_is_a_folder(stage: Stage) -> None:
    def change(path: Path) -> None:
        path.unlink()
        path.mkdir()

    refuse(stage, change)


@case('pictures of 1 pixel', 'generate')
def picture_one_pixel(stage: Stage) -> None:
    def shrink(path: Path) -> None:
        Image.new('RGB', (1, 1)).save(path)
        Image.new('L', (1, 1), 255).save(path.with_name(f'{path.stem}_mask.png'))

    refuse(stage, shrink, 'mask')


@case('pictures of 20,000 x 20,000 pixels in few bytes', 'generate')
def picture_bomb(stage: Stage) -> None:
    whole = stage.folder / 'bomb.png'
    Image.new('1', (20_000, 20_000)).save(whole)
    refuse(stage, lambda path: shutil.copy(whole, path), '400000000 pixels')


@case('pictures with a palette', 'generate')
def picture_palette(stage: Stage) -> None:
    take(stage, lambda path: Image.open(path).convert('P').save(path, 'PNG'))


@case('grey pictures of 16 bits', 'generate')
def picture_grey16(stage: Stage) -> None:
    def change(path: Path) -> None:
        grey = np.array(Image.open(path).convert('L')).astype(np.uint16) * 257
        Image.fromarray(grey).save(path, 'PNG')

    take(stage, change)


@case('pictures in CMYK', 'generate')
def picture_cmyk(stage: Stage) -> None:
    take(stage, lambda path: Image.open(path).convert('CMYK').save(path))


@case('pictures with an alpha channel', 'generate')
def picture_alpha(stage: Stage) -> None:
    def change(path: Path) -> None:
        picture = Image.open(path).convert('RGBA')
        picture.putalpha(40)
        picture.save(path, 'PNG')

    take(stage, change)


def depth_case(input: str, name: str, change: Callable[[np.ndarray], np.ndarray], *says: str):
    """A case of depth maps that are changed."""

    @case(input, 'check', name)
    def act(stage: Stage) -> None:
        from tests.support.configs import depth_config
        from tests.support.tiny import save_tiny_controlnet

        controlnet = stage.shared.made('controlnet', save_tiny_controlnet)
        sd = stage.shared.sd
        config = depth_config('ap_resnet50_nyu-depth', stage.folder, sd, controlnet)
        for path in (stage.folder / 'data' / 'annotations').rglob('*.png'):
            pixels = change(np.array(Image.open(path)))
            Image.fromarray(pixels).save(path, 'TIFF' if pixels.dtype.kind == 'f' else 'PNG')
        path = stage.folder / 'config.py'
        config.dump(path)
        stage.checks_wrong(path, says=[stage.folder / 'data' / 'annotations', *says])


depth_case('depth maps of zeros', 'depth_zero', lambda pixels: pixels * 0, 'no pixel')
depth_case('depth maps of NaN', 'depth_nan', lambda pixels: (pixels * np.nan).astype('f4'), 'NaN')
depth_case('depth maps of another size', 'depth_size', lambda pixels: pixels[:-9].copy(), 'size')
depth_case(
    'depth maps in colour',
    'depth_colour',
    lambda pixels: np.repeat((pixels // 256).astype('u1')[..., None], 3, 2),
    'one channel',
)


# What the cases share


def changed(stage: Stage, change: Callable[[Path], object]) -> Path:
    """Waterbirds whose pictures of the train split are changed."""
    root = stage.birds()
    for path in train_pictures(root):
        change(path)
    return root


def refuse(stage: Stage, change: Callable[[Path], object], *says: str) -> None:
    """Pictures that ``generate`` must refuse, without a pool."""
    root, pool = changed(stage, change), stage.folder / 'pool'
    stage.refuses('generate', stage.config(root), *DRAW, '--out', pool, says=[root, *says])
    assert not (pool / 'manifest.jsonl').exists()


def take(stage: Stage, change: Callable[[Path], object]) -> None:
    """Pictures that ``generate`` must take: kept pixels are those of the picture as OpenCV is."""
    root, pool = changed(stage, change), stage.folder / 'pool'
    stage.accepts('generate', stage.config(root), *DRAW, '--out', pool)
    images = [np.array(Image.open(path)) for path in sorted((pool / 'images').iterdir())]
    assert len(SamplePool(pool)) == len(images) == 2
    assert all(image.dtype == np.uint8 and image.std() > 5 for image in images)
    assert all((image == 255).mean() < 0.5 for image in images), 'mostly white'
