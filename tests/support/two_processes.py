# SPDX-License-Identifier: Apache-2.0
"""A search and a synthesis with tiny models, for one process or, under torchrun, several."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mmengine import dist
from mmengine.config import Config

from mmgap.compat import start_processes
from mmgap.distributed import all_reduce_sum, gather_list, raise_on_all_ranks, rank0_buffers
from mmgap.files import write_json
from mmgap.generators import InpaintingGenerator
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank
from mmgap.sources import SourceSet
from mmgap.synthesis import SynthesisSettings, Synthesizer
from tests.support.datasets import DrawnDataset
from tests.support.tiny_search import make


def main(folder: Path, out: Path, launcher: str) -> None:
    """Search and draw in ``out`` with what ``folder`` has; several processes also agree there."""
    start_processes(launcher, Config())
    if launcher != 'none':
        agree(out)
    generator = InpaintingGenerator(str(folder / 'sd'), guidance_scale=3.0)
    sources = SourceSet(DrawnDataset(folder / 'drawn'), generator.size)
    search, prompts = make(generator, sources, steps=3, batch_size=4)
    search.run(prompts, out / 'search.safetensors', PromptBank(out / 'bank'))
    settings = SynthesisSettings(num_inference_steps=2, batch_size=5, aim=0.5)
    synthesizer = Synthesizer(generator, sources, settings)
    drawn = synthesizer.run(prompts, 7, SamplePool(out / 'pool'), search.target)
    # A second time there is nothing left to draw, for any of them.
    again = synthesizer.run(prompts, 7, SamplePool(out / 'pool'), search.target)
    if (drawn, again) != (7, 0):
        raise SystemExit(f'{drawn} images drawn, then {again}')


def agree(out: Path) -> None:
    """Each process writes ``agreed_RANK.json``: what it knows of an error, of buffers and sums."""
    rank, said = dist.get_rank(), {}
    try:
        with raise_on_all_ranks(OSError, ValueError):
            if rank == 1:
                raise UnicodeError('source 3 is bad')  # a kind of ValueError
    except ValueError as error:
        said['error'] = type(error).__name__, str(error)
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank + 1)
    with rank0_buffers(norm):
        said['inside'] = norm.running_mean.tolist()
        norm.running_mean.zero_()
    said['outside'] = norm.running_mean.tolist()
    parts = [torch.tensor([1.0, rank]), torch.tensor([[rank + 2.0]])]
    said['sums'] = [total.tolist() for total in all_reduce_sum(parts)]
    said['main'] = gather_list([rank] * (rank + 1))
    write_json(out / f'agreed_{rank}.json', said)


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
