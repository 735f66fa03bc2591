# SPDX-License-Identifier: Apache-2.0
"""Measure a pool of 100,000 images: python -m tests.soak.load --out DIR.

It is made without drawing: the lines are those of the pool's own class, the images links to some
hundred PNGs. Writes DIR/load.json and DIR/load.md: figures, goals and the machine; ends with 1 if
a goal is missed.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from mmgap.files import write_bytes, write_json
from mmgap.manifest import MANIFEST, Sample
from mmgap.pool import SamplePool, encode_png
from tests.support.pools import ABOUT, picture

SIZES = (100, 10_000, 100_000)
APPENDED = 50
ADDED = 500  # to a pool before a refresh
LINKS = 500  # images that share a file; file systems allow some tens of thousands


@dataclass(frozen=True)
class Figure:
    """A measurement.

    Attributes:
        what: What is measured.
        value: The figure.
        unit: Its unit.
        goal: What it shall stay below; None where nothing was set.
    """

    what: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is below its goal."""
        return self.goal is None or self.value < self.goal


def make_pool(folder: Path, count: int) -> Path:
    """A pool of so many images; one that is there is taken."""
    if (folder / MANIFEST).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / 'images').mkdir(parents=True)
    lines = []
    for i in range(count):
        name, first = f'images/{i:06d}.png', f'images/{i - i % LINKS:06d}.png'
        if i % LINKS == 0:
            data = encode_png(picture(i))
            (folder / name).write_bytes(data)
        else:
            os.link(folder / first, folder / name)
        about = dict(ABOUT, label=i % 2, seed=i, source_index=i % 1000)
        lines.append(Sample(file=name, bytes=len(data), **about).line())
    write_bytes(folder / MANIFEST, ''.join(lines).encode())
    return folder


def seconds(act: Callable[[], object], times: int = 3) -> tuple[float, float]:
    """Median seconds of doing something several times: by the clock, and of a core."""
    walls, cores = [], []
    for _ in range(times):
        gc.collect()
        wall, core = time.perf_counter(), time.process_time()
        act()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return statistics.median(walls), statistics.median(cores)


def added_memory(folder: Path) -> float:
    """MiB that opening a pool adds to a process, which is one of its own."""
    code = (
        'import psutil, sys; from mmgap.pool import SamplePool; me = psutil.Process(); '
        'before = me.memory_info().rss; pool = SamplePool(sys.argv[1]); '
        'print((me.memory_info().rss - before) / 2**20)'
    )
    command = [sys.executable, '-c', code, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def append_milliseconds(folder: Path) -> float:
    """Median milliseconds of an append; the pool is as before afterwards."""
    pool, taken = SamplePool(folder), []
    before, data = len(pool), encode_png(picture(0))
    for i in range(APPENDED):
        began = time.perf_counter()
        pool.append(data, **dict(ABOUT, seed=i))
        taken.append(1e3 * (time.perf_counter() - began))
    pool.keep(lambda number, _: number < before)
    return statistics.median(taken)


def sync_milliseconds(folder: Path) -> float:
    """Median milliseconds of writing two small files to the disk: what an append cannot beat."""
    path, taken = folder / 'sync', []
    for _ in range(APPENDED):
        began = time.perf_counter()
        write_bytes(path, b'0' * 200)
        with path.open('ab') as file:
            file.write(b'0' * 400)
            file.flush()
            os.fsync(file.fileno())
        taken.append(1e3 * (time.perf_counter() - began))
    path.unlink()
    return statistics.median(taken)


def refresh_seconds(folder: Path) -> tuple[float, float]:
    """Median seconds in which a mix takes new images of a pool: by the clock, and of a core."""
    from mmengine.dataset import BaseDataset

    from mmgap.datasets import SyntheticMixDataset

    class Real(BaseDataset):
        METAINFO = dict(classes=('a', 'b'))

        def load_data_list(self) -> list[dict]:
            return [dict(img_path=f'{i}.png', gt_label=i % 2) for i in range(1000)]

    mix = SyntheticMixDataset(Real(pipeline=[]), pool=str(folder))
    pool, data, taken = SamplePool(folder), encode_png(picture(0)), []
    before = len(pool)
    for _ in range(3):
        for i in range(ADDED):
            pool.append(data, **dict(ABOUT, seed=i))
        taken.append(seconds(mix.refresh, times=1))
        if mix.num_synthetic != len(pool):
            raise SystemExit(f'{mix.num_synthetic} images in use, not {len(pool)}')
    pool.keep(lambda number, _: number < before)
    walls, cores = zip(*taken, strict=True)
    return statistics.median(walls), statistics.median(cores)


def measure(out: Path) -> list[Figure]:
    """All figures."""
    pools = {count: make_pool(out / f'pool_{count}', count) for count in SIZES}
    figures = []
    for count, folder in pools.items():
        goal = 2.0 if count == SIZES[-1] else None
        wall, core = seconds(lambda folder=folder: SamplePool(folder))
        figures.append(Figure(f'open {count:,} images, by the clock', wall, 's', goal))
        figures.append(Figure(f'open {count:,} images, of a core', core, 's', goal))
    largest = pools[SIZES[-1]]
    wall, core = refresh_seconds(largest)
    what = f'refresh a mix with {SIZES[-1]:,} images after {ADDED} more'
    figures.append(Figure(f'{what}, by the clock', wall, 's', 1.0))
    figures.append(Figure(f'{what}, of a core', core, 's', 1.0))
    appended = {count: append_milliseconds(folder) for count, folder in pools.items()}
    bare = sync_milliseconds(out)
    for count, value in appended.items():
        figures.append(Figure(f'append to {count:,} images, median of {APPENDED}', value, 'ms'))
    figures.append(Figure('two small files to this disk, which is in an append', bare, 'ms'))
    ratio = appended[SIZES[-1]] / appended[SIZES[0]]
    figures.append(Figure(f'append to {SIZES[-1]:,} over {SIZES[0]:,}', ratio, 'times', 2.0))
    figures.append(Figure(f'memory of {SIZES[-1]:,} images', added_memory(largest), 'MiB'))
    return figures


def machine() -> dict[str, str]:
    """What it was measured on."""
    import torch

    return dict(
        cores=str(os.cpu_count()),
        load=f'{os.getloadavg()[0]:.1f} over the last minute, before',
        memory=f'{psutil.virtual_memory().total / 2**30:.0f} GiB',
        system=platform.platform(),
        python=platform.python_version(),
        numpy=np.__version__,
        torch=torch.__version__,
    )


def table(figures: list[Figure], about: dict[str, str]) -> str:
    """The figures in Markdown."""
    lines = ['# A large pool', '', '| what | figure | goal | met |', '|---|---|---|---|']
    for one in figures:
        goal = '' if one.goal is None else f'< {one.goal:g} {one.unit}'
        met = '' if one.goal is None else ('yes' if one.met else '**no**')
        lines.append(f'| {one.what} | {one.value:.3g} {one.unit} | {goal} | {met} |')
    lines += ['', *(f'- {name}: {value}' for name, value in about.items())]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, help='folder of pools and results')
    out = parser.parse_args().out
    about = machine()
    figures = measure(out)
    rows = [dict(vars(one), met=one.met) for one in figures]
    write_json(out / 'load.json', dict(figures=rows, machine=about))
    text = table(figures, about)
    write_bytes(out / 'load.md', text.encode())
    print(text)
    sys.exit(0 if all(one.met for one in figures) else 1)


if __name__ == '__main__':
    main()
