# SPDX-License-Identifier: Apache-2.0
"""Sheets of images for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

LINE = 14  # height of a line of text in pixels


def draw_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray], Sequence[str]]]) -> Image.Image:
    """Rows of images, each under a title, with a note under each image.

    Args:
        rows: Title, ``(H, W, 3)`` uint8 images, all of one size, and a note for each.
    """
    height, width = (rows[0][1][0].shape[:2]) if rows else (64, 64)
    scale = max(1, 96 // width)
    cell_w, cell_h = width * scale + 4, height * scale + 4 + LINE
    columns = max([len(images) for _, images, _ in rows], default=1)
    sheet = Image.new('RGB', (max(columns * cell_w, 480), len(rows) * (cell_h + LINE)), 'white')
    pen = ImageDraw.Draw(sheet)
    for r, (title, images, notes) in enumerate(rows):
        top = r * (cell_h + LINE)
        pen.text((2, top), title, fill='black')
        for c, image in enumerate(images):
            picture = Image.fromarray(image).resize((width * scale, height * scale), 0)
            sheet.paste(picture, (c * cell_w + 2, top + LINE))
            pen.text((c * cell_w + 2, top + LINE + height * scale), notes[c], fill='grey')
    return sheet
