# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmgap.prompts import PromptBank, SoftPrompt, load_prompt, load_prompts
from tests.support.hostile import Hostile


def test_what_is_saved_comes_back_bit_by_bit(tmp_path):
    torch.manual_seed(0)
    bank = PromptBank(tmp_path / 'new' / 'prompts')
    prompt = SoftPrompt(torch.randn(3, 8), 'a-0', label=1, template='a {}', joiner=', ', turn=2)
    path = bank.add(prompt, dict(seed=3))
    again = load_prompt(path, width=8)
    assert torch.equal(again.embeddings, prompt.embeddings)
    for name in ('id', 'label', 'template', 'joiner', 'turn'):
        assert getattr(again, name) == getattr(prompt, name)
    content = json.loads(path.with_suffix('.json').read_text())
    assert (content['seed'], content['tokens']) == (3, 3)
    content['number'] = content.pop('turn')  # as before 0.2
    path.with_suffix('.json').write_text(json.dumps(content))
    assert load_prompt(path).turn == 2


def test_a_prompt_is_for_the_class_that_it_was_found_for(tmp_path):
    prompt = SoftPrompt(torch.ones(1, 4), 'a', label=1)
    path = PromptBank(tmp_path).add(prompt, {'class': 'dog'})
    assert load_prompt(path, classes=('cat', 'dog')).label == load_prompt(path).label == 1
    unnamed = PromptBank(tmp_path / 'unnamed').add(prompt, {'class': '1'})
    assert load_prompt(unnamed, classes=('cat', 'dog')).label == 1
    for classes in (('dog', 'cat'), ('bear', 'cat', 'dog'), ('dog',)):
        with pytest.raises(ValueError, match=r"a.safetensors was found for class 1, 'dog', and"):
            load_prompts(tmp_path, classes=classes)


def test_a_bank_is_its_folder(tmp_path):
    bank = PromptBank(tmp_path)
    assert len(bank) == 0
    for id in ('b', 'a'):
        bank.add(SoftPrompt(torch.ones(1, 4), id), {})
    bank.add(SoftPrompt(torch.zeros(2, 4), 'a'), {})  # replaces the first one
    assert [prompt.id for prompt in bank] == ['a', 'b'] == [p.id for p in load_prompts(tmp_path)]
    assert next(iter(bank)).embeddings.shape == (2, 4)
    assert sorted(os.listdir(tmp_path)) == ['a.json', 'a.safetensors', 'b.json', 'b.safetensors']


def test_files_of_the_released_code(tmp_path):
    """One (n, width) tensor under one name, or one (width,) tensor for each token."""
    torch.manual_seed(0)
    rows = torch.randn(3, 8)
    torch.save({'<p>': rows}, tmp_path / 'learned_embeds.bin')
    one = load_prompt(tmp_path / 'learned_embeds.bin', width=8)
    torch.save({f'<p{i}>': row for i, row in enumerate(rows)}, tmp_path / 'learned embeds-5.bin')
    several = load_prompt(tmp_path / 'learned embeds-5.bin', joiner=', ')
    assert torch.equal(one.embeddings, rows)
    assert torch.equal(several.embeddings, rows)
    assert (several.joiner, one.joiner, several.id) == (', ', ' ', 'learned_embeds-5')
    assert [p.joiner for p in load_prompts(tmp_path, joiner=', ')] == [', ', ', ']
    torch.save({'string_to_param': {'*': rows}, 'name': 'p'}, tmp_path / 'webui.pt')
    assert torch.equal(load_prompt(tmp_path / 'webui.pt').embeddings, rows)


def test_files_for_two_text_encoders(tmp_path):
    """In either order of the names, as other programs write them too."""
    torch.manual_seed(0)
    parts = dict(clip_g=torch.randn(2, 6), clip_l=torch.randn(2, 4))
    joined = torch.cat([parts['clip_l'], parts['clip_g']], dim=1)
    save_file(parts, tmp_path / 'p.safetensors')
    torch.save(parts, tmp_path / 'q.bin')
    for prompt in load_prompts(tmp_path, width=10):
        assert torch.equal(prompt.embeddings, joined) and prompt.widths == (4, 6)
    path = PromptBank(tmp_path / 'bank').add(load_prompt(tmp_path / 'q.bin'), {})
    again = load_file(path)
    assert set(again) == set(parts) and all(torch.equal(again[k], parts[k]) for k in parts)
    with pytest.raises(ValueError, match='width 10, the text encoder needs 4'):
        load_prompt(path, width=4)
    save_file(dict(parts, clip_g=torch.randn(3, 6)), tmp_path / 'p.safetensors')
    with pytest.raises(ValueError, match='either text encoder, got 2 and 3'):
        load_prompt(tmp_path / 'p.safetensors')
    for widths in ((4, 5), (4, 3, 3), ()):
        with pytest.raises(ValueError, match='add up to 10, got'):
            SoftPrompt(joined, 'p', widths=widths)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    ran = tmp_path / 'ran'
    torch.save({'<p>': Hostile(ran)}, tmp_path / 'zip.bin')
    (tmp_path / 'plain.bin').write_bytes(pickle.dumps({'<p>': Hostile(ran)}, protocol=2))
    for name in ('zip.bin', 'plain.bin'):
        with pytest.raises(ValueError, match=name):
            load_prompt(tmp_path / name)
    assert not ran.exists()
    # The files would run: it is the loading that does not.
    pickle.loads((tmp_path / 'plain.bin').read_bytes())
    assert ran.exists()


@pytest.mark.parametrize('suffix', ['.safetensors', '.bin'])
@pytest.mark.parametrize('damage', ['truncated', 'short', 'garbage', 'empty'])
def test_damaged_files_are_refused(suffix, damage, tmp_path):
    path = tmp_path / f'p{suffix}'
    state = {'<p>': torch.ones(2, 8)}
    save_file(state, path) if suffix == '.safetensors' else torch.save(state, path)
    data = path.read_bytes()
    damaged = dict(truncated=data[:-20], short=data[:5], garbage=b'no prompt' * 9, empty=b'')
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=f'p{suffix} cannot be read'):
        load_prompt(path)


@pytest.mark.parametrize('id', ['../x', 'a/b', '/x', '..', 'a\n', '', 5, None])
def test_an_id_that_is_no_name_is_refused(id, tmp_path):
    """A bank would write a file of that name."""
    path = PromptBank(tmp_path).add(SoftPrompt(torch.ones(1, 4), 'p'), {})
    about = json.loads(path.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps(dict(about, id=id)))
    with pytest.raises(ValueError, match='id must consist of letters'):
        load_prompt(path)


def test_names_of_files_that_differ_in_no_letter(tmp_path):
    for name in ('size >5', 'size <5', 'plain'):
        torch.save({'<x>': torch.ones(4)}, tmp_path / f'{name}.bin')
    ids = [prompt.id for prompt in load_prompts(tmp_path)]
    assert ids[0] == 'plain' and len(set(ids)) == 3


def test_files_without_prompts(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.safetensors'):
        load_prompt(tmp_path / 'nothing.safetensors')
    with pytest.raises(FileNotFoundError, match='holds no prompt files'):
        load_prompts(tmp_path)
    save_file({'<p>': torch.ones(2, 8)}, tmp_path / 'p.safetensors')
    with pytest.raises(ValueError, match='width 8, the text encoder needs 32'):
        load_prompt(tmp_path / 'p.safetensors', width=32)
    (tmp_path / 'p.json').write_text('{"id": ')
    with pytest.raises(ValueError, match='p.json'):
        load_prompt(tmp_path / 'p.safetensors')
    for name, state in [
        ('empty.bin', {}),
        ('words.bin', {'<p>': 'a bird'}),
        ('deep.bin', {'<p>': torch.ones(1, 2, 3)}),
        ('mixed.bin', {'<p>': torch.ones(2), '<q>': torch.ones(3)}),
    ]:
        torch.save(state, tmp_path / name)
        with pytest.raises(ValueError, match=name):
            load_prompt(tmp_path / name)


def test_full_disk_leaves_the_old_prompt(tmp_path, monkeypatch):
    bank = PromptBank(tmp_path)
    path = bank.add(SoftPrompt(torch.ones(1, 4), 'p'), {})

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        bank.add(SoftPrompt(torch.zeros(1, 4), 'p'), {})
    assert torch.equal(load_prompt(path).embeddings, torch.ones(1, 4))
    assert sorted(os.listdir(tmp_path)) == ['p.json', 'p.safetensors']
