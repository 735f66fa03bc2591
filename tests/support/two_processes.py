# SPDX-License-Identifier: Apache-2.0
"""A search and a synthesis with tiny models, for one process or, under torchrun, several."""

from __future__ import annotations

import sys
from pathlib import Path

from mmengine.config import Config

from mmgap.compat import start_processes
from mmgap.generators import InpaintingGenerator
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank
from mmgap.sources import SourceSet
from mmgap.synthesis import Synthesizer
from tests.support.datasets import DrawnDataset
from tests.support.tiny_search import make


def main(folder: Path, out: Path, launcher: str) -> None:
    start_processes(launcher, Config())
    generator = InpaintingGenerator(str(folder / 'sd'), guidance_scale=3.0)
    sources = SourceSet(DrawnDataset(folder / 'drawn'), generator.size)
    search, prompts = make(generator, sources, steps=3, batch_size=4)
    search.run(prompts, out / 'search.safetensors', PromptBank(out / 'bank'))
    synthesizer = Synthesizer(generator, sources, num_inference_steps=2, batch_size=5, aim=0.5)
    drawn = synthesizer.run(prompts, 7, SamplePool(out / 'pool'), search.target)
    # A second time there is nothing left to draw, for any of them.
    again = synthesizer.run(prompts, 7, SamplePool(out / 'pool'), search.target)
    if (drawn, again) != (7, 0):
        raise SystemExit(f'{drawn} images drawn, then {again}')


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
