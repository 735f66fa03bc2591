# SPDX-License-Identifier: Apache-2.0
"""Reads files: images as the model's pipeline reads them, masks by what their values say."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import get as read_bytes
from PIL import Image, ImageOps, UnidentifiedImageError

from mmgap.wrappers import innermost

# Suffixes of images that both OpenCV and Pillow read.
SUFFIXES: tuple[str, ...] = ('.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.webp', '.tif', '.tiff')
SUFFIXES += ('.ppm', '.pgm', '.pbm', '.pnm')
# What Pillow and OpenCV raise on files that are broken, or none of theirs.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError)
UNREADABLE = (*_BROKEN, cv2.error, Image.DecompressionBombError)
GREYISH = 8  # by which the channels of a grey picture may differ, after a JPEG
FEW = 16  # values; a soft edge has more
MOST_NUMBERS = 50  # of objects in one mask
VOTES = 51  # CUB-200-2011 stores how many of five people saw the bird, in steps of this
SHOWN = 6  # values in a message


def check_image(path: str, data: bytes) -> str:
    """See that an image is whole and of a sensible size.

    OpenCV reads a truncated image without a word, the missing part grey.

    Args:
        path: Where it is from, for messages.
        data: What is in the file.

    Returns:
        Pillow's name of its mode.

    Raises:
        ValueError: If it is no image, is broken, or has more pixels than Pillow's
            ``MAX_IMAGE_PIXELS`` allows; names the file.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:
                raise Image.DecompressionBombError(
                    f'its {len(data)} bytes unpack to {image.width}x{image.height} pixels, more '
                    f'than PIL.Image.MAX_IMAGE_PIXELS={most}; make it smaller'
                )
            image.load()
            return image.mode
    except UNREADABLE as error:
        raise ValueError(f'image {path} cannot be read: {reason(error)}') from error


def read_image(
    info: str | Mapping[str, Any], loader: Any = None, data: bytes | None = None
) -> np.ndarray:
    """An image as the model sees it, whatever its mode: upright, without alpha, in 8 bits.

    Args:
        info: Its path, or a data info with ``img_path``.
        loader: The transform that loads images in the dataset's pipeline, see
            :func:`image_loader`. By default mmcv's, as all configs of the toolboxes have it.
        data: What is in the file, where that is known already.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or the loader makes something else of it than 8 bits and
            one or three channels; names the file.
    """
    info = dict(img_path=info) if isinstance(info, str) else dict(info)
    loader = loader or LoadImageFromFile()
    path, mode = info['img_path'], ''
    if type(loader) is LoadImageFromFile and loader.file_client_args is None:
        if data is None:
            data = read_bytes(path, backend_args=loader.backend_args)
        mode = f' (mode {check_image(path, data)})'
        try:
            pixels = mmcv.imfrombytes(data, loader.color_type, backend=loader.imdecode_backend)
        except UNREADABLE as error:
            raise ValueError(f'image {path} cannot be read: {reason(error)}') from error
    else:
        pixels = (loader(info) or {}).get('img')
    if pixels is None:
        raise ValueError(
            f'image {path}{mode} cannot be read by the {type(loader).__name__} of the pipeline, so '
            'no model can be trained on it; save it in 8 bits, as PNG or JPEG'
        )
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 and pixels.min() >= 0 and pixels.max() <= 255:
        whole = pixels.astype(np.uint8)
        pixels = whole if np.array_equal(whole, pixels) and pixels.dtype.kind == 'f' else pixels
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise ValueError(
            f'image {path} is read by {loader!r} as {pixels.dtype} with {pixels.shape[2]} '
            "channels, a generator draws 8 bits and 3; set color_type='color', or save it so"
        )
    return np.ascontiguousarray(pixels[..., ::-1])


def image_loader(dataset: Any) -> Any:
    """The transform that loads the images of a dataset; None where its pipeline has none.

    Raises:
        ValueError: If the parts of a wrapped dataset load theirs in different ways.
    """
    found = {}
    for part in innermost(dataset):
        transforms = getattr(getattr(part, 'pipeline', None), 'transforms', ())
        loaders = [t for t in transforms if isinstance(t, LoadImageFromFile)]
        # Your own may be of any kind, but it comes first.
        loaders += [t for t in transforms[:1] if not hasattr(t, 'depth_rescale_factor')]
        if loaders:
            found[described(loaders[0])] = loaders[0]
    if len(found) > 1:
        raise ValueError(
            f'the parts of the training data load images in different ways: {sorted(found)}; '
            'generated images can be like those of one only: give all parts the same loader'
        )
    return next(iter(found.values()), None)


def reason(error: Exception) -> str:
    """What an error of Pillow says, without the name of an object in memory."""
    known = 'it is empty, or of no format that Pillow reads'
    return known if isinstance(error, UnidentifiedImageError) else str(error)


def described(transform: Any) -> str:
    """A transform with its settings, which its own ``repr`` may leave out."""
    settings = ', '.join(f'{key}={value!r}' for key, value in vars(transform).items())
    name = getattr(transform, '__name__', type(transform).__name__)  # a function is one too
    return re.sub(r' at 0x\w+', '', f'{name}({settings})')


def read_mask(path: str, objects: Sequence[int] | None = None) -> np.ndarray:
    """Which pixels of an image are the object.

    Read as what it is where that is clear:

    - bright on the object, dark elsewhere: what is above the middle of black and white;
    - 0 and one other value, or black and one other colour: the other one;
    - the numbers 1, 2, … of objects, 0 elsewhere: all of them. In a palette picture as those of
      Pascal VOC, 255 (not known) is not the object;
    - where the alpha channel alone has a shape: what is opaque.

    Args:
        path: The mask.
        objects: Values, or places in the palette, that are the object: for masks in which only a
            person can tell.

    Returns:
        ``(H, W)`` bool, True on the object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or its values may mean several things; names the file and
            the values.
    """
    data = read_bytes(path)
    try:
        check_image(path, data)
    except ValueError as error:
        raise ValueError(str(error).replace('image', 'mask', 1)) from error
    # As an image, which cameras may store on its side.
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    try:
        return _valued(image, objects) if objects is not None else _shape(image)
    except ValueError as error:
        raise ValueError(
            f'mask {path} {error}. A mask must be bright (above 127) on the object and dark '
            'elsewhere, or 0 and one other value, or 0 and the numbers 1, 2, … of the objects; '
            '`mmgap masks IMAGES --segmentations DIR --object VALUE …` makes such masks'
        ) from error


def _valued(image: Image.Image, objects: Sequence[int]) -> np.ndarray:
    pixels = np.array(image)
    if pixels.ndim != 2:
        raise ValueError(f'has {pixels.shape[2]} channels, no values {[*objects]}')
    return np.isin(pixels, objects)


def _shape(image: Image.Image) -> np.ndarray:
    """The object by the alpha channel, if that has a shape, and by colour."""
    alpha = None
    if image.has_transparency_data:
        alpha = np.array(image.convert('RGBA'))[..., 3] > 127
        alpha = None if alpha.all() or not alpha.any() else alpha
    try:
        found = _by_colour(image)
    except ValueError:
        if alpha is None:
            raise
        return alpha  # an object cut out, its own colours in it
    if alpha is None:
        return found
    if found.all() or not found.any() or (found == alpha).mean() > 0.99:
        return alpha
    raise ValueError('shows one object by its colours and another by its alpha channel')


def _by_colour(image: Image.Image) -> np.ndarray:
    if image.mode == 'P':
        indices = np.array(image)
        colours = np.array(image.convert('RGB'))
        if np.ptp(colours, axis=2).max() <= GREYISH:
            return _by_value(np.array(image.convert('L')))
        first = (image.getpalette('RGB') or ())[:3]
        if len(_values(indices)) > 2 and not any(first):
            return _by_number(indices, void=255)
        return _of_two_colours(colours)
    if image.mode in ('1', 'L', 'LA'):
        return _by_value(np.array(image.convert('L')))
    if image.mode == 'I' or image.mode.startswith('I;16'):
        return _by_value(np.array(image).astype(np.int64), white=65535)
    if image.mode == 'F':
        pixels = np.array(image)
        if not np.array_equal(pixels, pixels.round()):
            raise ValueError(
                f'holds {pixels.min():g} to {pixels.max():g}, which are no whole numbers'
            )
        return _by_value(pixels.astype(np.int64), white=65535)
    colours = np.array(image.convert('RGB'))
    if np.ptp(colours, axis=2).max() <= GREYISH:
        return _by_value(np.array(image.convert('L')))
    return _of_two_colours(colours)


def _of_two_colours(pixels: np.ndarray) -> np.ndarray:
    """What is not black, if that is one colour."""
    packed = (pixels.astype(np.int64) * (1, 256, 65536)).sum(axis=2)
    found = np.unique(packed)
    if len(found) != 2 or found[0] != 0:
        colours = [(int(c) % 256, int(c) // 256 % 256, int(c) // 65536) for c in found]
        raise ValueError(f'holds {_listed(colours, "colours (red, green, blue)")}')
    return packed > 0


def _by_value(pixels: np.ndarray, white: int = 255) -> np.ndarray:
    """The object in a grey picture."""
    values = _values(pixels)
    if len(values) == 1:  # a number of an object that fills it, or brightness
        return np.full(pixels.shape, values[0] == 1 or values[0] > white // 2)
    if len(values) == 2 and values[0] == 0:
        return pixels > 0
    bright = values > white // 2
    dim = ~bright & (values > values[0])
    if not bright.any():
        return _by_number(pixels)
    if dim.any() and len(values) <= FEW and (values % VOTES).any():
        # A soft edge is thin. Numbers of classes or objects fill areas, and 255 may stand for
        # what is not known between them.
        numbers = values[bright][0] == white and _from_one(values[dim])
        area = np.isin(pixels, values[dim]).astype(np.uint8)
        if numbers or cv2.erode(area, np.ones((3, 3))).any():
            raise ValueError(f'holds {_listed(values)}, which may be brightness as well as numbers')
    return pixels > white // 2


def _by_number(pixels: np.ndarray, void: int | None = None) -> np.ndarray:
    """All objects of a picture that numbers them from 1 on."""
    values = _values(pixels)
    numbers = values[(values > 0) & (values != void)]
    if values[0] != 0 or not _from_one(numbers):
        raise ValueError(f'holds {_listed(values)}, which do not say what the object is')
    return (pixels > 0) & (pixels != void)


def _values(pixels: np.ndarray) -> np.ndarray:
    """The values in a picture, in order; without the sort that takes long for large ones."""
    if pixels.dtype == np.uint8:
        return np.flatnonzero(np.bincount(pixels.ravel()))
    return np.unique(pixels)


def _from_one(values: np.ndarray) -> bool:
    numbers = np.arange(1, len(values) + 1)
    return 0 < len(values) <= MOST_NUMBERS and np.array_equal(values, numbers)


def _listed(values: Sequence[Any] | np.ndarray, what: str = 'values') -> str:
    shown = [str(value) for value in values[:SHOWN]]
    rest = f' and {len(values) - SHOWN} more' if len(values) > SHOWN else ''
    return f'the {what} {", ".join(shown)}{rest}'
