# SPDX-License-Identifier: Apache-2.0
"""What a search tells while it runs, and what its checkpoint tells afterwards."""

from __future__ import annotations

import pytest

from mmgap.generators import InpaintingGenerator
from mmgap.search import read_curves
from mmgap.sources import SourceSet
from tests.support.datasets import DrawnDataset
from tests.support.tiny_search import make


class Stopped(Exception):
    """In place of a kill."""


def test_each_step_is_told_and_kept(tiny_sd, tmp_path):
    generator = InpaintingGenerator(str(tiny_sd), guidance_scale=3.0)
    sources = SourceSet(DrawnDataset(tmp_path / 'drawn'), generator.size)
    checkpoint, told = tmp_path / 'search.safetensors', []

    def note(step, prompts):
        told.append((step, [(one.prompt.id, one.losses[-1], one.hits[-1]) for one in prompts]))
        if len(told) == 3:
            raise Stopped

    search, prompts = make(generator, sources, steps=4, checkpoint_interval=2)
    with pytest.raises(Stopped):
        search.run(prompts, checkpoint, on_step=note)
    assert [step for step, _ in told] == [1, 2, 3]
    assert [len(curve.losses) for curve in read_curves(checkpoint)] == [2, 2]
    search, prompts = make(generator, sources, steps=4, checkpoint_interval=2)
    found = search.run(prompts, checkpoint, on_step=note)
    assert [step for step, _ in told] == [1, 2, 3, 3, 4]
    assert told[2] == told[3]  # taken again, to the same losses
    last = {step: {id: values for id, *values in facts} for step, facts in told}
    for curve, result in zip(read_curves(checkpoint), found, strict=True):
        assert curve.id == result.prompt.id and curve.done and curve.restarts == 0
        assert curve.losses == [last[step][curve.id][0] for step in (1, 2, 3, 4)]
        assert curve.hits == [last[step][curve.id][1] for step in (1, 2, 3, 4)]
        assert len(curve.attacks) == curve.total == 4
        assert len(result.words) == len(result.prompt.embeddings)
        assert result.summary(sources.classes)['snapshots'] == [0, 1, 2, 4]


def test_curves_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no.safetensors does not exist'):
        read_curves(tmp_path / 'no.safetensors')
    (tmp_path / 'bad.safetensors').write_bytes(b'bad')
    with pytest.raises(ValueError, match='is damaged or of another version of mmgap'):
        read_curves(tmp_path / 'bad.safetensors')
