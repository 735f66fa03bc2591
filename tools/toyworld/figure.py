# SPDX-License-Identifier: Apache-2.0
"""README's figure: training images, what methods make of them, and what that does.

Reads folders of ``mmgap benchmark``: images from the pools of the first one's seed, worst groups
from the cells of both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgap.benchmark.figures import interval
from mmgap.files import write_bytes
from mmgap.pool import SamplePool
from mmgap.toyworld.dataset import ToyBirds

# A method's name in the figure, and whether its images are shown.
METHODS = {
    'none': ('no images', False),
    'prompts': ('four sentences', True),
    'random-many': ('random prompts', True),
    'ap-many': ('adversarial prompts', True),
    'gap': ('adversarial, guided by the sentences', True),
}
SPLITS = ((None, 'by day', '#1f6f8b'), ('test_shift_3', 'by night and in fog', '#d08c3b'))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folders', nargs='+', metavar='TITLE=FOLDER', help='benchmarks')
    parser.add_argument('--out', required=True, type=Path, help='PNG file')
    parser.add_argument('--seed', type=int, default=20, help='whose images are shown')
    parser.add_argument('--budget', type=int, default=100)
    parser.add_argument('--columns', type=int, default=13)
    args = parser.parse_args()
    wrong = [one for one in args.folders if '=' not in one]
    if wrong:
        parser.error(f'give TITLE=FOLDER, not {wrong}')
    return args


def pictures(folder: Path, seed: int, columns: int) -> list[tuple[str, list[np.ndarray]]]:
    """Rows of images: the sources, then what each method drew around the same ones."""
    rows, data = [], ToyBirds(split='train', pipeline=[dict(type='mmcv.LoadImageFromFile')])
    for method, (name, shown) in METHODS.items():
        if not shown:
            continue
        (path,) = folder.glob(f'pools/{method}-{seed}-*')
        samples = SamplePool(path).kept[:columns]
        made = [np.array(Image.open(path / sample.file)) for sample in samples]
        if not rows:
            sources = [data[sample.source_index]['img'][..., ::-1] for sample in samples]
            rows.append(('training images', sources))
        rows.append((name, made))
    return rows


def worst_groups(cells: Sequence[Mapping[str, Any]], method: str, split: str | None) -> list[float]:
    """Of all seeds, in percent."""
    own = [cell for cell in cells if cell['method'] == method]
    figures = [cell if split is None else cell['others'][split] for cell in own]
    return [100 * one['worst_group'] for one in figures]


def of_finished_seeds(cells: Sequence[Mapping[str, Any]], budget: int) -> list[Mapping[str, Any]]:
    """The cells of seeds that all methods have: bars are of the same ones."""
    own = [cell for cell in cells if cell['method'] in METHODS and cell['budget'] in (0, budget)]
    seeds = [{c['seed'] for c in own if c['method'] == method} for method in METHODS]
    return [cell for cell in own if cell['seed'] in set.intersection(*seeds)]


def main() -> None:
    """Draw the figure."""
    import io

    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    args = parse_args()
    named = dict(one.split('=', 1) for one in args.folders)
    rows = pictures(Path(next(iter(named.values()))), args.seed, args.columns)
    figure = plt.figure(figsize=(11, 6.6))
    outer = figure.add_gridspec(2, 1, height_ratios=[1.25, 1], hspace=0.2)
    grid = outer[0].subgridspec(len(rows), args.columns, wspace=0.04, hspace=0.06)
    for i, (name, images) in enumerate(rows):
        for j, image in enumerate(images):
            axis = figure.add_subplot(grid[i, j])
            axis.imshow(image, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if j == 0:
                axis.set_ylabel(name, rotation=0, ha='right', va='center', fontsize=10)
    bars = outer[1].subgridspec(1, len(named), wspace=0.08)
    for i, (title, folder) in enumerate(named.items()):
        axis = figure.add_subplot(bars[i])
        every = json.loads((Path(folder) / 'results.json').read_text())
        cells = of_finished_seeds(every, args.budget)
        for k, (split, label, color) in enumerate(SPLITS):
            values = [worst_groups(cells, method, split) for method in METHODS]
            middle, half = [np.mean(v) for v in values], [interval(v) for v in values]
            places = np.arange(len(METHODS)) + 0.38 * (k - 0.5)
            axis.barh(places, middle, 0.36, xerr=half, color=color, label=label, ecolor='#444')
        axis.set(xlim=(0, 100), yticks=range(len(METHODS)))
        axis.set_yticklabels([name for name, _ in METHODS.values()] if i == 0 else [])
        axis.set_xlabel('accuracy of the worst group, %')
        axis.set_title(title, fontsize=10)
        axis.invert_yaxis()
        axis.spines[['top', 'right']].set_visible(False)
        if i == 0:
            axis.legend(frameon=False, fontsize=9, loc='upper right')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120, bbox_inches='tight')
    write_bytes(args.out, buffer.getvalue())


if __name__ == '__main__':
    main()
