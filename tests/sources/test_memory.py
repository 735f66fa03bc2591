# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from mmgap.generators import InpaintingGenerator
from mmgap.sources import SourceSet
from mmgap.sources.memory import SourceMemory


def test_each_source_is_read_once_and_the_oldest_goes_first():
    read = []

    def load(index):
        read.append(index)
        return (np.full(10, index, np.uint8),)

    memory = SourceMemory(load, count=9, limit=35)  # three of ten bytes
    for index in (0, 1, 0, 2, 0, 3, 0, 1):
        assert memory(index)[0][0] == index
    assert read == [0, 1, 2, 3, 1]  # 1 had to go for 3, 0 was used all the time


def test_sources_are_read_ahead_in_another_thread():
    threads = []

    def load(index):
        threads.append(threading.current_thread())
        if index == 7:
            raise ValueError('mask 7 is damaged')
        return (np.zeros(4),)

    memory = SourceMemory(load, count=9)
    memory.prefetch([3, 4, 3, 7])
    memory(3), memory(4)
    assert len(threads) >= 2 and threading.current_thread() not in threads
    for _ in range(2):  # what the thread met is raised where it matters, each time
        with pytest.raises(ValueError, match='mask 7 is damaged'):
            memory(7)


@pytest.mark.parametrize('channels', [4, 9])
def test_sources_are_encoded_once(channels, tiny_sd, tiny_sd_9, drawn):
    """By index, whatever the batch; of two source sets each has its own."""
    generator = InpaintingGenerator(str(tiny_sd if channels == 4 else tiny_sd_9), strength=0.8)
    encoder, seen = generator.pipeline.vae.encoder, []
    encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    sets = [SourceSet(drawn, generator.size) for _ in range(2)]
    embeds = generator.prompts.encode([generator.prompts.random_prompt(2, 0, 'p')]).detach()
    kinds = 1 if channels == 4 else 2  # a UNet of 4 channels is not shown the masked image

    def draw(condition):
        hidden = embeds.expand(len(condition), -1, -1)
        with torch.no_grad():
            return generator(condition, hidden, list(range(len(condition))), 3)

    first = draw(sets[0].load([0, 1, 1]))
    assert len(seen) == 2 * kinds
    assert torch.equal(draw(sets[0].load([0, 1, 1])), first) and len(seen) == 2 * kinds
    draw(sets[0].load([1, 2]))
    assert len(seen) == 3 * kinds
    draw(sets[1].load([2]))
    assert len(seen) == 4 * kinds
    by_hand = sets[0].load([0, 1, 1])
    by_hand.owner = None  # nothing is known of it
    assert torch.equal(draw(by_hand), first)
    assert len(seen) == 4 * kinds + 3 * 2
