# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from mmgap.prompts import PromptBank, PromptEncoder
from mmgap.search import SearchSettings, initial_prompts


@pytest.fixture(scope='module')
def encoder(tiny_sd):
    pipe = StableDiffusionInpaintPipeline.from_pretrained(tiny_sd, safety_checker=None)
    return PromptEncoder(pipe.tokenizer, pipe.text_encoder)


def starts(encoder, classes, seed=0, prefix='', order=None, **settings):
    return initial_prompts(encoder, classes, SearchSettings(**settings), seed, prefix, order)


def test_scopes_have_equal_budgets(encoder):
    own = starts(encoder, ('a', 'b'), prompts_per_class=2, scope='class')
    every = starts(encoder, ('a', 'b'), prompts_per_class=2, scope='all')
    assert [(p.id, p.label) for p in own] == [('a-0', 0), ('a-1', 0), ('b-0', 1), ('b-1', 1)]
    assert [(p.id, p.label) for p in every] == [(f'all-{i}', None) for i in range(4)]
    drawn = [tuple(p.embeddings.flatten().tolist()) for p in own + every]
    assert len(set(drawn)) == 8


def test_draws_do_not_depend_on_how_many_there_are(encoder):
    few = starts(encoder, ('a', 'b'), prompts_per_class=1, seed=3)
    more = {p.id: p for p in starts(encoder, ('a', 'b'), prompts_per_class=3, seed=3)}
    assert all(torch.equal(p.embeddings, more[p.id].embeddings) for p in few)
    other = starts(encoder, ('a', 'b'), prompts_per_class=1, seed=4)
    assert not torch.equal(few[0].embeddings, other[0].embeddings)


def test_token_counts_in_turn(encoder):
    prompts = starts(encoder, ('a', 'b'), prompts_per_class=2, tokens=[1, 4, 2])
    assert [len(p.embeddings) for p in prompts] == [1, 4, 2, 1]


def test_templates_and_ids(encoder):
    classes = ('land bird', 'Car/Truck')
    settings = dict(prompts_per_class=1, template='a {class} in {}')
    prompts = starts(encoder, classes, prefix='r1-', **settings)
    assert [p.template for p in prompts] == ['a land bird in {}', 'a Car/Truck in {}']
    assert [p.id for p in prompts] == ['r1-land_bird-0', 'r1-Car_Truck-0']


@pytest.mark.parametrize(
    'classes',
    [
        ('หมู', 'หมี'),
        ('कि', 'की'),
        ('size >5', 'size <5'),
        ('Cat', 'cat'),
        ('a b', 'a/b'),
        ('x' * 300,),
    ],
)
def test_classes_that_differ_in_no_letter(classes, encoder, tmp_path):
    """Their prompts have names, files and starts of their own, whatever other classes there are."""
    prompts = starts(encoder, (*classes, 'dog'), prompts_per_class=1, prefix='r0-')
    ids = [prompt.id for prompt in prompts]
    assert len({id.lower() for id in ids}) == len(ids) and ids[-1] == 'r0-dog-0'
    turned = starts(encoder, ('dog', *reversed(classes)), prompts_per_class=1, prefix='r0-')
    assert [prompt.id for prompt in turned] == ids[::-1]
    bank = PromptBank(tmp_path)
    for prompt in prompts:
        bank.add(prompt, {})
    assert {prompt.id for prompt in bank} == set(ids)


def test_start_from_words_and_files(encoder, tmp_path):
    (words,) = starts(encoder, ('a',), prompts_per_class=1, tokens=5, init='x yz')
    ids = encoder.tokenizer('x yz', add_special_tokens=False).input_ids
    table = encoder.text_encoder.get_input_embeddings().weight
    assert torch.equal(words.embeddings, table[[ids[i % 3] for i in range(5)]])
    path = PromptBank(tmp_path).add(encoder.random_prompt(2, 0, 'kept'), {})
    (filed,) = starts(encoder, ('a',), prompts_per_class=1, tokens=3, init=str(path))
    kept = encoder.random_prompt(2, 0, 'kept').embeddings
    assert torch.equal(filed.embeddings, kept[[0, 1, 0]])
    given = ['x yz', str(path), 'vocabulary']
    found = starts(encoder, ('a', 'b'), prompts_per_class=2, tokens=3, init=given)
    assert torch.equal(found[0].embeddings, words.embeddings[:3])
    assert torch.equal(found[1].embeddings, filed.embeddings)
    assert torch.equal(found[3].embeddings, found[0].embeddings)  # on through the next class
    drawn = starts(encoder, ('a', 'b'), prompts_per_class=2, tokens=3)[2]
    assert torch.equal(found[2].embeddings, drawn.embeddings)
    assert [p.turn for p in found] == [0, 1, 2, 3]
    order = [[2, 0], [1, 1]]
    found = starts(encoder, ('a', 'b'), prompts_per_class=2, tokens=3, init=given, order=order)
    assert [p.turn for p in found] == [2, 0, 1, 1]
    assert torch.equal(found[1].embeddings, words.embeddings[:3])
    assert torch.equal(found[3].embeddings, filed.embeddings)
    for init in ('x yz', str(path)):
        with pytest.raises(ValueError, match='tokens, tokens=1'):
            starts(encoder, ('a',), prompts_per_class=1, tokens=1, init=init)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(scope='world'), "'world'"),
        (dict(prompts_per_class=0), 'got 0 and 5'),
        (dict(tokens=0), 'got 4 and 0'),
        (dict(tokens=[]), r'got 4 and \[\]'),
        (dict(tokens=[2, 0]), r'got 4 and \[2, 0\]'),
        (dict(template='a bird'), 'exactly once'),
        (dict(template='a {class} in {}', scope='all'), "needs scope='class'"),
        (dict(init='7'), 'does not know'),
        (dict(init=[]), 'empty list'),
    ],
)
def test_bad_settings(settings, words, encoder):
    with pytest.raises(ValueError, match=words):
        starts(encoder, ('a', 'b'), **settings)


def test_missing_file(encoder):
    with pytest.raises(FileNotFoundError, match='nothing.safetensors'):
        starts(encoder, ('a',), init='/nothing.safetensors')
