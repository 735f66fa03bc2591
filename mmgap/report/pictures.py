# SPDX-License-Identifier: Apache-2.0
"""Images inside of a page: cut from the strips that a round leaves, no larger than needed."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image


def cells(path: Path, columns: int, rows: int = 1) -> list[Image.Image]:
    """The images of a strip, row by row; none where there is no such file.

    Raises:
        ValueError: If the file is no image or its size does not fit.
    """
    if not path.is_file():
        return []
    strip = read_image(path)
    width, height = strip.width // max(1, columns), strip.height // rows
    if columns < 1 or width * columns != strip.width or height * rows != strip.height:
        raise ValueError(
            f'{path} is {strip.width}x{strip.height}, which are not {rows} rows of {columns} images'
        )
    return [
        strip.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
        for y in range(rows)
        for x in range(columns)
    ]


def read_image(path: Path) -> Image.Image:
    """A file as an RGB image.

    Raises:
        ValueError: If it is none.
    """
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} is no image: {error}') from error


def inline(image: Image.Image, words: str, width: int) -> str:
    """An ``<img>`` that carries its own data.

    Args:
        image: The image.
        words: What it shows, for those who cannot see it.
        width: Pixels; wider ones are made smaller.
    """
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format='JPEG', quality=85, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    css = ' class="tiny"' if image.width <= 64 else ''
    return (
        f'<img{css} src="data:image/jpeg;base64,{data}" alt="{escape(words)}" '
        f'width="{image.width}" height="{image.height}">'
    )
