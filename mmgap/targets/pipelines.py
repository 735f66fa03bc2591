# SPDX-License-Identifier: Apache-2.0
"""What a test pipeline does to an image before the model's data preprocessor gets it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmgap.configs import name_of

# Transforms that swap red and blue where a setting of theirs is True.
SWAPS = dict(NumpyToPIL='to_rgb', ToPIL='to_rgb', PILToNumpy='to_bgr', ToNumpy='to_bgr')
FIXED = ('Resize', 'ResizeEdge', 'CenterCrop', 'EfficientNetCenterCrop')
# Those that change the size to one that depends on the image.
SIZED = re.compile('Resize|Pad')
# Those that leave an image as it is, show it mirrored, or change its colours a little at random, as
# where a fold of the training data is tested on with their pipeline.
HARMLESS = re.compile(
    'Load|Pack|Collect|KeyMapper|ToHalf|PILToTensor|RandomFlip|RandomHorizontalFlip|ColorJitter|'
    'Lighting|PhotoMetricDistortion'
)
INSTEAD = (
    'give input=dict(input_size=(height, width), channel_order=…), which is '
    "'bgr' for images that OpenCV reads and 'rgb' for others"
)


def read_pipeline(
    pipeline: Sequence[Mapping[str, Any]], sized: bool = False
) -> tuple[tuple[int, int] | None, str]:
    """Size and channel order of the images that come out of a test pipeline.

    The last resize or centre crop says the size.

    Args:
        pipeline: Configs of its transforms.
        sized: Whether the size is known from elsewhere and need not be said.

    Returns:
        ``(height, width)``, None where images stay as they are, and ``'bgr'`` or ``'rgb'``.

    Raises:
        ValueError: If the pipeline does not start from an image file, gives images no fixed size,
            or has a transform that is not followed.
    """
    size, order, loads = None, 'bgr', False
    unfixed: str | None = None
    for transform in pipeline:
        kind = transform.get('type', '')
        name = name_of(kind)
        kind = name if isinstance(kind, type) else str(kind)
        loads = loads or name == 'LoadImageFromFile'
        order = transform.get('channel_order', order)
        if name in FIXED:
            if transform.get('scale_factor') in (1, (1, 1)):
                continue
            value, fixed = _size(transform, kind, name)
            if value is not None:
                size = (value, value) if isinstance(value, int) else value
            # A crop after it would fix the size again.
            unfixed = None if fixed else f'resizes to {value} and keeps the ratio'
            if transform.get('scale_factor') is not None and value is None:
                unfixed = f'resizes by scale_factor={transform["scale_factor"]}'
        elif name in SWAPS:
            if transform.get(SWAPS[name]):
                order = 'rgb' if order == 'bgr' else 'bgr'
        elif name == 'Pad' and unfixed is None and _same(transform.get('size'), size):
            continue
        elif SIZED.match(name):
            unfixed = f'has {kind}, whose size depends on the image or is not followed'
        elif name in ('Normalize', 'ToTensor'):
            raise ValueError(
                f'the test pipeline has {kind}, which feedback cannot follow; leave that to '
                'mean and std of the data_preprocessor, as MMPretrain does'
            )
        elif not HARMLESS.match(name):
            raise ValueError(
                f'the test pipeline has {kind}, which feedback cannot follow; {INSTEAD}: then '
                'generated images are judged without it'
            )
    if not loads:
        raise ValueError(f'the test pipeline loads no image; {INSTEAD}')
    if unfixed is not None and not sized:
        raise ValueError(
            f'the test pipeline {unfixed}, which gives images no fixed size; give '
            'input=dict(input_size=(height, width))'
        )
    return size, order


def _same(value: Any, size: tuple[int, int] | None) -> bool:
    """Whether a setting of mmcv, ``(width, height)`` or one side, is a ``(height, width)``."""
    value = (value, value) if isinstance(value, int) else value
    return value is not None and tuple(value)[::-1] == size


def _size(
    transform: Mapping[str, Any], kind: str, name: str
) -> tuple[int | tuple[int, int] | None, bool]:
    """What a resize or crop asks for, as ``(height, width)`` or one side, and whether it fixes."""
    torchvision = kind.startswith('torchvision/')
    if torchvision:  # (height, width), where mmcv has (width, height)
        value = transform.get('size')
    else:
        value = transform.get('crop_size') or transform.get('scale')
    edge = name == 'ResizeEdge' or (kind == 'torchvision/Resize' and isinstance(value, int))
    if value is not None and not isinstance(value, int):
        value = tuple(value) if torchvision else tuple(value)[::-1]
    return value, not (transform.get('keep_ratio') or edge)
