# SPDX-License-Identifier: Apache-2.0
"""What a search step fetches from the device: each fetch waits until a GPU is done."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmgap.feedback import TextGuidance
from mmgap.generators import InpaintingGenerator
from mmgap.search.progress import PromptProgress
from mmgap.sources import ImageSpec, SourceSet
from tests.support.tiny_search import make


class Fetches(TorchDispatchMode):
    """Lists the operators that bring numbers of another device to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        if any(tensor.device.type != 'cpu' for tensor in given):
            name = func.overloadpacket.__name__
            out = [v for v in tree_leaves(result) if isinstance(v, torch.Tensor)]
            copies = name in ('_to_copy', 'copy_') and any(v.device.type == 'cpu' for v in out)
            if copies or name in ('_local_scalar_dense', 'nonzero'):
                self.names.append(name)
        return result


def test_a_step_fetches_its_numbers_once(tiny_sd, drawn, device):
    if device.type == 'cpu':
        pytest.skip("all memory is the CPU's: run it with --device mock")
    generator = InpaintingGenerator(str(tiny_sd), guidance_scale=3.0, eta=1.0)
    text = TextGuidance(descriptions=['a b'])
    sources = SourceSet(drawn, generator.size)
    search, prompts = make(generator, sources)
    text.prepare(generator, sources.classes)
    step = search._score
    step.feedback, step.batch_size = [*search.feedback, text], 2
    progress = [PromptProgress(p, p.embeddings.detach().clone()) for p in prompts]
    images = [ImageSpec(i, i // 2, i) for i in range(2 * len(prompts))]
    with search.target.frozen():
        step(progress, images)  # the sources are known from here on
        with Fetches() as fetches:
            step(progress, images)
    # The losses of all batches at once; and diffusers looks at the range of each batch's images.
    batches = len(prompts)
    assert fetches.names.count('_to_copy') == 1, fetches.names
    assert len(fetches.names) <= 1 + 3 * batches, fetches.names
