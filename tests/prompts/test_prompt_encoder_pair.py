# SPDX-License-Identifier: Apache-2.0
"""Two text encoders behind one prompt, against what Stable Diffusion XL's pipelines make of it."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from safetensors.torch import load_file

from mmgap.prompts import PromptBank, PromptEncoder, PromptEncoderPair, SoftPrompt, load_prompt
from tests.support.tiny import XL_POOLED, XL_WIDTHS, save_tiny_xl, tiny_tokenizer


def stock_pipeline(folder):
    pipe = StableDiffusionXLInpaintPipeline.from_pretrained(folder, add_watermarker=False)
    for network in (pipe.text_encoder, pipe.text_encoder_2):
        network.requires_grad_(False)
    return pipe


def pair_of(pipe, **replaced):
    names = ('tokenizer', 'text_encoder', 'tokenizer_2', 'text_encoder_2')
    return PromptEncoderPair(**({name: getattr(pipe, name) for name in names} | replaced))


@pytest.fixture(scope='module')
def old_xl(tmp_path_factory):
    """With the wrong end-of-text id that configs of older text encoders have."""
    return save_tiny_xl(tmp_path_factory.mktemp('old_xl'), eos_token_id=2)


@pytest.fixture(scope='module')
def encoder(tiny_xl):
    return pair_of(stock_pipeline(tiny_xl))


def assert_stock(encoder, states, pipe, texts):
    """The states are what a stock pipeline makes of the texts."""
    with torch.no_grad():
        expected = [pipe.encode_prompt(text, do_classifier_free_guidance=False) for text in texts]
    told = encoder.arguments(states)
    assert set(told) == {'prompt_embeds', 'pooled_prompt_embeds'}
    for name, values in zip(
        told, ([e[0] for e in expected], [e[2] for e in expected]), strict=True
    ):
        torch.testing.assert_close(told[name], torch.cat(values), rtol=0, atol=1e-6)


@pytest.mark.parametrize('old', [False, True])
def test_text_equals_the_stock_pipeline(old, tiny_xl, old_xl):
    pipe = stock_pipeline(old_xl if old else tiny_xl)
    encoder, texts = pair_of(pipe), ['a red bird', '', 'x, y! z']
    with torch.no_grad():
        states = encoder.encode_text(texts)
        assert states.shape == (3, 21, sum(XL_WIDTHS))
        assert_stock(encoder, states, pipe, texts)
        prompts = [encoder.text_prompt(text, f'p{i}') for i, text in enumerate(texts) if text]
        torch.testing.assert_close(encoder.encode(prompts), states[[0, 2]], rtol=0, atol=1e-6)
    # Each sentence has a pooled embedding of its own.
    assert (states[0, -1] - states[2, -1]).abs().max() > 1e-2


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('tokens', [1, 4])
@pytest.mark.parametrize('template', ['{}', 'a bird in {}, red!'])
def test_saved_prompt_means_the_same_in_diffusers(tokens, template, old, tiny_xl, old_xl, tmp_path):
    pipe = stock_pipeline(old_xl if old else tiny_xl)
    encoder = pair_of(pipe)
    prompt = encoder.random_prompt(tokens, 7, 'Landbird-0', template=template)
    with torch.no_grad():
        states = encoder.encode([prompt])
    file = load_file(PromptBank(tmp_path).add(prompt, {}))
    if old:  # as docs/generators.md says: a placeholder would be taken for the end
        pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    parts = dict(clip_l=(pipe.tokenizer, pipe.text_encoder))
    parts['clip_g'] = (pipe.tokenizer_2, pipe.text_encoder_2)
    assert set(file) == set(parts)
    for name, (tokenizer, text_encoder) in parts.items():
        pipe.load_textual_inversion(
            file[name], token=prompt.placeholder, tokenizer=tokenizer, text_encoder=text_encoder
        )
        ids = tokenizer.convert_tokens_to_ids(prompt.placeholder)
        kept = text_encoder.get_input_embeddings().weight[ids : ids + tokens]
        assert torch.equal(kept, file[name])
    assert_stock(encoder, states, pipe, [prompt.text])


def test_bank_and_encoders_know_the_parts(encoder, tmp_path):
    prompt = encoder.random_prompt(3, 0, 'p', label=1)
    again = load_prompt(PromptBank(tmp_path).add(prompt, {}), encoder.width)
    assert torch.equal(again.embeddings, prompt.embeddings)
    assert again.widths == prompt.widths == XL_WIDTHS
    assert torch.equal(encoder.encode([again]), encoder.encode([prompt]))


def test_draws_are_of_joined_rows(encoder):
    """55 words span fewer directions than 80 features: parts drawn apart would leave their hull."""
    table = encoder.vocabulary()
    assert table.shape == (55, sum(XL_WIDTHS))  # 58 tokens but for start, end and the padding '!'
    word = encoder.text_prompt('q', 'q').embeddings
    assert (table == word).all(dim=1).any()
    draws = encoder.random_prompt(4, 1, 'p').embeddings.detach().double()
    table = table.double()
    directions, targets = (table[1:] - table[0]).T, (draws - table[0]).T
    solved = torch.linalg.lstsq(directions, targets).solution
    torch.testing.assert_close(directions @ solved, targets, rtol=0, atol=1e-6)
    mixed = torch.cat([targets[: XL_WIDTHS[0]], targets[XL_WIDTHS[0] :].flip(1)])
    solved = torch.linalg.lstsq(directions, mixed).solution
    assert (directions @ solved - mixed).abs().max() > 1e-3


def test_a_word_is_nearest_to_itself(encoder):
    found = encoder.nearest_words(encoder.text_prompt('xy', 'p'))
    tokenizer = encoder.first.tokenizer
    letters = [tokenizer.decode([i]).strip() for i in encoder.first.token_ids('xy')]
    assert [nearest[0] for nearest in found] == [(letter, 1.0) for letter in letters]


def test_gradient_reaches_both_parts_and_nothing_else(encoder):
    prompts = [encoder.random_prompt(3, 0, 'p'), encoder.random_prompt(2, 1, 'q')]
    told = encoder.arguments(encoder.encode(prompts))
    first, second = XL_WIDTHS
    for name, reached in dict(
        prompt_embeds=(True, True), pooled_prompt_embeds=(False, True)
    ).items():
        loss = told[name][0].square().sum()
        own, other = torch.autograd.grad(loss, [p.embeddings for p in prompts], retain_graph=True)
        found = [bool(part.abs().sum(dim=1).min() > 0) for part in own.split([first, second], 1)]
        assert tuple(found) == reached and not other.any()
    for part in (encoder.first, encoder.second):
        assert not part.text_encoder.get_input_embeddings()._forward_hooks


def test_what_does_not_fit(encoder, tiny_xl, tiny_sd):
    pipe = stock_pipeline(tiny_xl)
    with pytest.raises(ValueError, match='different vocabularies, of 58 and 56 tokens'):
        pair_of(pipe, tokenizer_2=tiny_tokenizer())
    with pytest.raises(ValueError, match='take 20 and 19 tokens'):
        pair_of(pipe, tokenizer_2=tiny_tokenizer('!', model_max_length=19))
    pipe.text_encoder_2.config.projection_dim = 49
    with pytest.raises(ValueError, match='width 49, more than the 48'):
        pair_of(pipe)
    pipe.text_encoder_2.config.projection_dim = XL_POOLED
    with pytest.raises(ValueError, match=r'width 80, the text encoder has 32 \+ 48'):
        encoder.encode([SoftPrompt(torch.zeros(1, 80), 'p')])
    with pytest.raises(ValueError, match=r'width 32, the text encoder has 32 \+ 48'):
        encoder.encode([SoftPrompt(torch.zeros(1, 32), 'p')])
    with pytest.raises(ValueError, match=r'width 30 \+ 2, the text encoder has 32'):
        PromptEncoder(pipe.tokenizer, pipe.text_encoder).encode(
            [SoftPrompt(torch.zeros(1, 32), 'p', widths=(30, 2))]
        )
    with pytest.raises(ValueError, match='19 tokens, the text encoder takes 18'):
        encoder.encode([encoder.random_prompt(19, 0, 'p')])


def test_words_that_the_tokenizers_split_differently(tiny_xl):
    """One pads with '!', so for it '!!' is twice the padding; for the other it is one word."""
    merged = dict(signs=['!', '!!'], merges=[('!', '!</w>')])
    tokenizers = tiny_tokenizer(**merged), tiny_tokenizer(**merged, pad_token='!')
    pipe = stock_pipeline(tiny_xl)
    for network in (pipe.text_encoder, pipe.text_encoder_2):
        network.resize_token_embeddings(len(tokenizers[0]))
    encoder = pair_of(pipe, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1])
    with pytest.raises(ValueError, match="split 'a !!' into 2 and 3 tokens"):
        encoder.text_prompt('a !!', 'p')
    assert len(encoder.text_prompt('a !', 'p').embeddings) == 2
