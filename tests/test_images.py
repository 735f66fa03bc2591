# SPDX-License-Identifier: Apache-2.0
"""Generator and model see the same picture, whatever the mode of the file; or it is named."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose, LoadImageFromFile
from PIL import ExifTags, Image

from mmgap.images import read_image, read_mask
from mmgap.sources import SourceSet

GREY = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def opencv(pixels):
    return lambda path: cv2.imwrite(str(path), pixels)


def pillow(mode_or_pixels, **settings):
    def save(path) -> None:
        image = mode_or_pixels
        if isinstance(image, str):
            image = Image.fromarray(RGB).convert(image)
        elif isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(path, **settings)

    return save


PALETTE = Image.fromarray(RGB).quantize(16)
ALPHA = np.dstack([RGB, 255 - GREY])
SIXTEEN = RGB.astype(np.uint16) * 257
# How a file of each mode is written, and the mean of the picture within 1; None where no pipeline
# of the toolboxes can train on it.
MODES = {
    '1.png': (pillow('1'), 120),
    '1.tif': (pillow('1'), 120),
    'L.png': (pillow('L'), 120),
    'L.jpg': (pillow('L'), 120),
    'LA.png': (pillow(Image.fromarray(ALPHA).convert('LA')), 120),
    'L_transparent.png': (pillow('L', transparency=7), 120),
    'P.png': (pillow(PALETTE), 104),
    'P_transparent.png': (pillow(PALETTE, transparency=3), 104),
    'P.bmp': (pillow(PALETTE), 104),
    'RGB.png': (pillow(RGB), 104),
    'RGB.jpg': (pillow(RGB), 104),
    'RGB.ppm': (pillow(RGB), 104),
    'RGB.webp': (pillow(RGB, lossless=True), 104),
    'RGBA.png': (pillow(ALPHA), 104),
    'RGBA.tif': (pillow(ALPHA), 52),
    'RGBA.webp': (pillow(ALPHA, lossless=True), 104),
    'CMYK.jpg': (pillow('CMYK'), 104),
    'CMYK.tif': (pillow('CMYK'), 104),
    'YCbCr.tif': (pillow('YCbCr'), 104),
    'LAB.tif': (pillow('LAB'), 107),
    'I16.png': (opencv(SIXTEEN[..., 0]), 120),
    'I16.tif': (opencv(SIXTEEN[..., 0]), 120),
    'I16.pgm': (opencv(SIXTEEN[..., 0]), 120),
    'RGB16.png': (opencv(SIXTEEN[..., ::-1]), 104),
    'RGB16.tif': (opencv(SIXTEEN[..., ::-1]), 104),
    'RGBA16.png': (opencv(ALPHA.astype(np.uint16) * 257), 104),
    'turned.png': (pillow(RGB, exif=turned()), 104),
    'turned.jpg': (pillow(RGB, exif=turned()), 104),
    'turned.tif': (pillow(RGB, exif=turned()), 104),
    'I.tif': (pillow(GREY.astype(np.int32) * 257), None),
    'F.tif': (pillow(GREY.astype(np.float32)), None),
    'F3.tif': (opencv(RGB.astype(np.float32)), None),
    'words.jpg': (lambda path: path.write_text('no picture'), None),
}


class OneImage:
    """A dataset of one image, with a pipeline."""

    metainfo = dict(classes=('a',))

    def __init__(self, path, mask=None, **settings) -> None:
        self.info = dict(img_path=str(path), gt_label=0, **({} if mask is None else mask))
        self.pipeline = Compose([LoadImageFromFile(**settings)])

    def __len__(self) -> int:
        return 1

    def get_data_info(self, index: int) -> dict:
        return dict(self.info)


@pytest.mark.parametrize('name', MODES)
def test_the_generator_sees_what_the_model_sees(name, tmp_path):
    save, mean = MODES[name]
    path = tmp_path / name
    save(path)
    dataset = OneImage(path)
    if mean is None:
        with pytest.raises(ValueError, match=name):
            SourceSet(dataset, (12, 20), masked=False).load([0])
        with pytest.raises((AssertionError, cv2.error)):
            dataset.pipeline(dataset.get_data_info(0))
        return
    seen = dataset.pipeline(dataset.get_data_info(0))['img']
    mask = np.zeros(seen.shape[:2], bool)
    mask[3:5, 3:5] = True
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    dataset.info['mask_path'] = str(tmp_path / 'mask.png')
    condition = SourceSet(dataset, seen.shape[:2]).load([0])
    assert np.array_equal(condition.images[0].permute(1, 2, 0), seen[..., ::-1])
    assert np.array_equal(condition.masks[0, 0], mask)
    assert seen.shape == ((20, 12, 3) if name.startswith('turned') else (12, 20, 3))
    assert abs(seen.mean() - mean) < 3


def test_the_pipeline_says_how_images_are_read(tmp_path):
    """Grey, with the other backend, unchanged: or what it makes cannot be drawn, which is said."""
    path = tmp_path / 'LA.png'
    MODES['LA.png'][0](path)
    grey = SourceSet(OneImage(path, color_type='grayscale'), (12, 20), masked=False).load([0])
    assert torch.equal(grey.images[0, 0], grey.images[0, 2])
    other = SourceSet(OneImage(path, imdecode_backend='pillow'), (12, 20), masked=False).load([0])
    assert not torch.equal(other.images, grey.images)  # it lays the picture on a grey canvas
    with pytest.raises(ValueError, match=r"LA.png is read by .* 4 channels.*color_type='color'"):
        SourceSet(OneImage(path, color_type='unchanged'), (12, 20), masked=False).load([0])


@pytest.mark.parametrize('name', ['RGB.jpg', 'RGB.png', 'RGB.webp', 'RGB.ppm', 'RGB16.tif'])
def test_a_truncated_image_is_named(name, tmp_path):
    """OpenCV reads most of them without a word, grey where there is nothing."""
    path = tmp_path / name
    MODES[name][0](path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=rf'{name} cannot be read'):
            read(str(path))


def test_a_decompression_bomb_is_refused(tmp_path):
    """A few bytes that say they are a picture of 2.5 billion pixels."""
    header = struct.pack('>IIBBBBB', 50000, 50000, 1, 0, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    data = b'\x89PNG\r\n\x1a\n'
    for kind, body in chunks:
        data += struct.pack('>I', len(body)) + kind + body
        data += struct.pack('>I', zlib.crc32(kind + body))
    path = tmp_path / 'bomb.png'
    path.write_bytes(data)
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match='bomb.png cannot be read: .*(bomb|50000x50000)'):
            read(str(path))


# Masks

OBJECT = np.zeros((12, 20), bool)
OBJECT[2:8, 3:12] = True
TWO = np.where(OBJECT, np.where(np.arange(20) < 7, 1, 2), 0).astype(np.uint8)
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
VOID = TWO.copy()
VOID[8:10, 3:12] = 255


def palette(pixels: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(pixels).convert('L')
    image = Image.frombytes('P', image.size, image.tobytes())
    image.putpalette(colours + [0] * (255 * 3 - len(colours)) + [224, 224, 192])
    return image


def with_alpha(pixels: np.ndarray, alpha: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8) * 255))
    return image


SOFT = cv2.GaussianBlur(OBJECT.astype(np.uint8) * 255, (3, 3), 0)
READABLE = {
    'one bit': Image.fromarray(OBJECT),
    'bright': Image.fromarray(OBJECT.astype(np.uint8) * 255),
    'soft edge': Image.fromarray(SOFT),
    'votes': Image.fromarray((np.round(SOFT / 51) * 51).astype(np.uint8)),
    '0 and 1': Image.fromarray(OBJECT.astype(np.uint8)),
    '0 and 7': Image.fromarray(OBJECT.astype(np.uint8) * 7),
    'numbers': Image.fromarray(TWO),
    '16 bits, bright': Image.fromarray(OBJECT.astype(np.uint16) * 65535),
    '16 bits, numbers': Image.fromarray(TWO.astype(np.uint16)),
    '32 bits, numbers': Image.fromarray(TWO.astype(np.int32)),
    'floats 0 and 1': Image.fromarray(OBJECT.astype(np.float32)),
    'white on black': Image.fromarray(np.repeat(OBJECT[..., None] * np.uint8(255), 3, 2)),
    'red on black': Image.fromarray(OBJECT[..., None] * np.uint8([128, 0, 0])),
    'VOC objects': palette(TWO, VOC),
    'VOC objects, edges not known': palette(VOID, VOC),
    'VOC, one class': palette(OBJECT.astype(np.uint8) * 15, VOC + [9] * 36),
    'black and white palette': palette(1 - OBJECT.astype(np.uint8), [255] * 3 + [0] * 3),
    'cut out': with_alpha(RGB, OBJECT),
    'white with alpha': with_alpha(np.full_like(RGB, 255), OBJECT),
    'opaque': with_alpha(OBJECT[..., None] * np.uint8([255] * 3), np.ones_like(OBJECT)),
}
CLASSES = np.where(TWO == 1, 3, np.where(TWO == 2, 7, 0)).astype(np.uint8)
AMBIGUOUS = {
    'classes': (Image.fromarray(CLASSES), 'values 0, 3, 7'),
    'trimap of pets': (Image.fromarray(TWO + 1), 'values 1, 2, 3'),
    'numbers and 255': (Image.fromarray(VOID), 'values 0, 1, 2, 255, which may be brightness'),
    'classes and 255': (
        Image.fromarray(np.where(VOID == 255, 255, CLASSES).astype(np.uint8)),
        'values 0, 3, 7, 255, which may be brightness',
    ),
    'VOC classes': (palette(CLASSES, VOC + [9] * 18), 'values 0, 3, 7'),
    'two colours': (
        Image.fromarray(np.uint8([[0, 0, 0], [128, 0, 0], [0, 128, 0]])[TWO]),
        r'colours \(red, green, blue\) \(0, 0, 0\), \(128, 0, 0\)',
    ),
    'floats': (Image.fromarray(SOFT.astype(np.float32) / 255), 'holds 0 to 1'),
    'two objects': (
        with_alpha(OBJECT[..., None] * np.uint8([255] * 3), OBJECT.T[:12, :1] | OBJECT[::-1]),
        'another by its alpha channel',
    ),
}


@pytest.mark.parametrize('name', READABLE)
def test_masks_are_read_as_what_they_are(name, tmp_path):
    path = tmp_path / ('mask.tif' if name[:2] in ('32', 'fl') else 'mask.png')
    READABLE[name].save(path)
    assert np.array_equal(read_mask(str(path)), OBJECT)


@pytest.mark.parametrize('name', AMBIGUOUS)
def test_masks_that_may_mean_several_things_are_refused(name, tmp_path):
    image, words = AMBIGUOUS[name]
    path = tmp_path / ('mask.tif' if image.mode == 'F' else 'mask.png')
    image.save(path)
    with pytest.raises(ValueError, match=rf'mask\.\w+ .*{words}.* --object'):
        read_mask(str(path))
    if name == 'classes':
        assert np.array_equal(read_mask(str(path), objects=[3]), TWO == 1)
