# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from mmgap.prompts import PromptBank, PromptEncoder, SoftPrompt, draw_from_vocabulary
from mmgap.prompts.prompt_encoder import nearest_words


def stock_pipeline(folder):
    return StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)


@pytest.fixture(scope='module')
def encoder(tiny_sd):
    pipe = stock_pipeline(tiny_sd)
    pipe.text_encoder.requires_grad_(False)
    return PromptEncoder(pipe.tokenizer, pipe.text_encoder)


def stock_states(pipe, text):
    """What a stock pipeline makes of prompt text."""
    with torch.no_grad():
        return pipe.encode_prompt(text, 'cpu', 1, False)[0]


@pytest.mark.parametrize('tokens', [1, 4])
@pytest.mark.parametrize('template', ['{}', 'a bird in {}, red', 'at{}s'])
def test_saved_prompt_means_the_same_in_diffusers(tokens, template, encoder, tiny_sd, tmp_path):
    prompt = encoder.random_prompt(tokens, 7, 'Landbird-0', template=template)
    path = PromptBank(tmp_path).add(prompt, {})
    pipe = stock_pipeline(tiny_sd)
    pipe.load_textual_inversion(str(path), local_files_only=True)
    with torch.no_grad():
        states = encoder.encode([prompt])
    torch.testing.assert_close(states, stock_states(pipe, prompt.text), rtol=0, atol=1e-6)
    # The tokens matter: other embeddings say something else.
    with torch.no_grad():
        other = encoder.encode([encoder.random_prompt(tokens, 8, 'x', template=template)])
    assert (states - other).abs().max() > 1e-2


@pytest.mark.parametrize('use_attention_mask', [False, True])
def test_text_equals_the_stock_pipeline(use_attention_mask, tiny_sd):
    pipe = stock_pipeline(tiny_sd)
    pipe.text_encoder.config.use_attention_mask = use_attention_mask
    encoder = PromptEncoder(pipe.tokenizer, pipe.text_encoder)
    texts = ['a red bird', '', 'x, y']
    with torch.no_grad():
        states = encoder.encode_text(texts)
        prompts = [encoder.text_prompt(text, f'p{i}') for i, text in enumerate(texts) if text]
        torch.testing.assert_close(encoder.encode(prompts), states[[0, 2]], rtol=0, atol=1e-6)
    expected = torch.cat([stock_states(pipe, text) for text in texts])
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)


def test_prompts_of_one_batch_do_not_influence_each_other(encoder):
    prompts = [
        encoder.random_prompt(3, 0, 'a'),
        encoder.random_prompt(1, 1, 'b', template='a bird in {}'),
        encoder.random_prompt(5, 2, 'c', joiner=', '),
    ]
    together = encoder.encode(prompts)
    alone = torch.cat([encoder.encode([prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    # Nor does the gradient of one reach another.
    grads = torch.autograd.grad(
        together[1].square().sum(), [p.embeddings for p in prompts], retain_graph=True
    )
    assert [bool(grad.any()) for grad in grads] == [False, True, False]


def test_joiner_stands_between_the_tokens(encoder):
    words = [encoder.text_prompt(word, word).embeddings.detach() for word in 'xyz']
    prompt = SoftPrompt(torch.cat(words), 'p', joiner=', ')
    expected = encoder.encode_text(['x, y, z'])
    torch.testing.assert_close(encoder.encode([prompt]), expected, rtol=0, atol=1e-6)


def test_gradient_goes_to_the_embeddings_alone(encoder):
    table = encoder.text_encoder.get_input_embeddings().weight
    before = table.detach().clone()
    prompt = encoder.random_prompt(3, 0, 'p')
    encoder.encode([prompt]).square().sum().backward()
    assert prompt.embeddings.grad.abs().sum(dim=1).min() > 0
    assert all(p.grad is None for p in encoder.text_encoder.parameters())
    assert torch.equal(table, before)
    # Nothing stays in the encoder: the same text is read as before.
    assert not encoder.text_encoder.get_input_embeddings()._forward_hooks


def test_half_precision_encoder_keeps_prompts_in_float32(tiny_sd):
    pipe = stock_pipeline(tiny_sd)
    encoder = PromptEncoder(pipe.tokenizer, pipe.text_encoder.to(torch.bfloat16))
    for prompt in (encoder.random_prompt(2, 0, 'a'), encoder.text_prompt('ab', 'b')):
        assert prompt.embeddings.dtype == torch.float32
        states = encoder.encode([prompt])
        assert states.dtype == torch.bfloat16
        (grad,) = torch.autograd.grad(states.float().sum(), prompt.embeddings)
        assert grad.dtype == torch.float32


def test_vocabulary_leaves_special_tokens_out(encoder):
    table = encoder.text_encoder.get_input_embeddings().weight
    kept = [i for i in range(len(table)) if i not in encoder.tokenizer.all_special_ids]
    assert torch.equal(encoder.vocabulary(), table[kept])


def test_draws_have_the_vocabularys_mean_and_covariance():
    torch.manual_seed(0)
    table = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    draws = draw_from_vocabulary(table, 200_000, torch.Generator().manual_seed(1))
    spread = table.T.cov().diagonal().max()
    torch.testing.assert_close(draws.mean(0), table.mean(0), rtol=0, atol=0.01 * spread.item())
    torch.testing.assert_close(draws.T.cov(), table.T.cov(), rtol=0, atol=0.02 * spread.item())


def test_draws_lie_in_the_affine_hull_of_the_vocabulary():
    torch.manual_seed(0)
    table = torch.randn(5, 12, dtype=torch.float64)  # fewer words than dimensions
    draws = draw_from_vocabulary(table, 50, torch.Generator().manual_seed(1))
    directions = (table[1:] - table[0]).T
    solved = torch.linalg.lstsq(directions, (draws - table[0]).T).solution
    torch.testing.assert_close(directions @ solved, (draws - table[0]).T)


def test_draws_depend_on_the_seed_alone(encoder):
    first = encoder.random_prompt(3, 1, 'a').embeddings
    torch.manual_seed(99)
    assert torch.equal(first, encoder.random_prompt(3, 1, 'b').embeddings)
    assert not torch.equal(first, encoder.random_prompt(3, 2, 'a').embeddings)


def test_words_are_repeated_to_fill_a_prompt(encoder):
    short = encoder.text_prompt('xy', 'p')
    filled = encoder.text_prompt('xy', 'p', tokens=5)
    assert torch.equal(filled.embeddings, short.embeddings[[0, 1, 0, 1, 0]])


def test_bad_prompts(encoder):
    with pytest.raises(ValueError, match='no tokens'):
        encoder.text_prompt('  ', 'p')
    with pytest.raises(ValueError, match='does not know'):
        encoder.text_prompt('x 7', 'p')
    with pytest.raises(ValueError, match='3 tokens, tokens=2'):
        encoder.text_prompt('x y z', 'p', tokens=2)
    with pytest.raises(ValueError, match='20 tokens, the text encoder takes 18'):
        encoder.text_prompt('x' * 20, 'p')
    with pytest.raises(ValueError, match='takes 18; it would be cut after'):
        encoder.encode_text(['y ' * 19])
    with pytest.raises(ValueError, match='19 tokens'):
        encoder.encode([encoder.random_prompt(19, 0, 'p')])
    with pytest.raises(ValueError, match='width 8, the text encoder has 32'):
        encoder.encode([SoftPrompt(torch.zeros(2, 8), 'p')])
    with pytest.raises(ValueError, match='NaN'):
        SoftPrompt(torch.full((1, 4), torch.nan), 'p')
    with pytest.raises(ValueError, match=r'\(0, 4\)'):
        SoftPrompt(torch.zeros(0, 4), 'p')
    with pytest.raises(ValueError, match='exactly once'):
        SoftPrompt(torch.zeros(1, 4), 'p', template='a bird')
    with pytest.raises(ValueError, match="got 'a/b'"):
        SoftPrompt(torch.zeros(1, 4), 'a/b')


def test_a_word_is_nearest_to_itself(encoder):
    found = encoder.nearest_words(encoder.text_prompt('xyz', 'p'), count=2)
    letters = [encoder.tokenizer.decode([i]).strip() for i in encoder.token_ids('xyz')]
    assert [nearest[0] for nearest in found] == [(letter, 1.0) for letter in letters]
    assert all(len(nearest) == 2 and nearest[1][1] < 1 for nearest in found)
    table = encoder.vocabulary()
    ((word, similar),) = encoder.nearest_words(SoftPrompt(-3 * table[:1], 'p'), count=1)[0]
    cosines = torch.cosine_similarity(-table[:1], table, dim=1)
    assert similar == pytest.approx(float(cosines.max()), abs=1e-4) and word
    everything = encoder.nearest_words(encoder.random_prompt(1, 0, 'p'), count=10**6)
    assert len(everything[0]) == len(table)


def test_a_part_of_a_character_is_named_by_its_token():
    class Bytes:
        def decode(self, ids):
            return {0: '\ufffd', 1: ' moon '}[ids[0]]

        def convert_ids_to_tokens(self, id):
            return 'ðŁ'

    rows = torch.eye(2)
    found = nearest_words(rows, rows, [0, 1], Bytes(), count=1)
    assert [nearest[0][0] for nearest in found] == ['ðŁ', 'moon']
