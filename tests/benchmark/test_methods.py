# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmgap.benchmark.methods import (
    FIXED,
    KEYS,
    Method,
    contents_of,
    current_names,
    read_methods,
)
from mmgap.files import fingerprint


@pytest.mark.parametrize(
    'fragments, words',
    [
        (dict(m=dict(rate=1)), r"method 'm' has unknown keys \['rate'\]; there are \('about', "),
        (dict(m=dict(train={'optim_wrapper.lr': 1})), r"must not change \['optim_wrapper.lr'\]"),
        (
            dict(m=dict(train={'train_dataloader': {'sampler': {'type': 'x'}}})),
            r"must not change \['train_dataloader.sampler', 'train_dataloader.sampler.type'\]",
        ),
        (dict(m=dict(train={'resume': True})), r"must not change \['resume'\]"),
        (
            dict(m=dict(prompts_of='n', search={}, texts=['a']), n=dict(search={})),
            r"'m' has \['search', 'texts'\], which has no use with prompts_of",
        ),
        (
            dict(m=dict(prompts_of='n', generator=dict(guidance_scale=3)), n=dict(search={})),
            r"changes \['guidance_scale'\] of the generator, for which prompts are found anew",
        ),
        (dict(m=dict(search={}, initial={})), r"\['initial'\], which has no use with search"),
        (dict(m=dict(texts=['a'], feedback=[])), r"\['feedback'\], which has no use with no sea"),
        (dict(m=dict(search={}, rounds=0)), 'has rounds=0; there must be one at least'),
        (dict(m=dict(texts=['a'], rounds=2)), 'has rounds=2; .*several need a search of its own'),
        (dict(m=dict(prompts_of='n')), "takes the prompts of 'n', which finds none"),
        (dict(m=dict(prompts_of='n'), n=dict(texts=['a'])), "of 'n', which finds none"),
        (
            dict(m=dict(prompts_of='n'), n=dict(prompts_of='o', search={}), o=dict(search={})),
            "method 'm' takes the prompts of 'n', which finds none",
        ),
        (dict(m=dict(texts=['a'], cost_of='n')), r"has cost_of='n'; there are \[\], which draw"),
        (
            dict(m=dict(texts=['a'], cost_of='n'), n=dict(dataset={})),
            "cost_of='n'; there are ",
        ),
        (
            dict(
                m=dict(texts=['a'], cost_of='n'),
                n=dict(texts=['a'], cost_of='o'),
                o=dict(search={}),
            ),
            r"method 'm' has cost_of='n'; there are \['o'\], which draw images and have no cost_of",
        ),
    ],
)
def test_bad_fragments(fragments, words):
    with pytest.raises(ValueError, match=words):
        read_methods(fragments)


def test_what_changes_nothing_is_allowed():
    """What a child config has switched off, and prompts that no search found."""
    read_methods(
        dict(
            r=dict(initial={}),
            a=dict(prompts_of='r', generator=dict(strength=0.6)),
            ap=dict(search={}, initial=None, texts=None),
            b=dict(prompts_of='ap', texts=None, rounds=1, generator=dict(compile=True, eta=0.5)),
        )
    )


def test_every_fixed_setting_is_refused():
    for name in FIXED:
        with pytest.raises(ValueError, match='all are trained alike'):
            read_methods(dict(m=dict(train={name: {}})))


def test_methods_know_what_they_do(tmp_path):
    (tmp_path / 'words.txt').write_text('a\n\n# no sentence\nb c\n')
    methods = read_methods(
        dict(
            none=dict(about='nothing new'),
            own=dict(prompts_of='ap', synthesis=dict(cross=False)),
            ap=dict(search={}),
            drawn=dict(initial={}),
            words=dict(texts=str(tmp_path / 'words.txt')),
            guided=dict(search={}, feedback=[dict(images='a/b'), dict(images=dict(type='x')), {}]),
        )
    )
    assert list(methods) == ['none', 'own', 'ap', 'drawn', 'words', 'guided']
    assert methods['none'].about == 'nothing new' and not methods['none'].makes_images
    assert all(method.makes_images for name, method in methods.items() if name != 'none')
    assert methods['own'].finder is methods['ap'] is methods['ap'].finder
    assert methods['words'].sentences() == ['a', 'b c'] and methods['ap'].sentences() == []
    assert methods['guided'].image_folders() == ['a/b']


def test_what_a_method_gets_the_cost_of_is_part_of_its_key():
    fragments = dict(m=dict(texts=['a']), x=dict(texts=['a'], cost_of='n'), n=dict(search={}))
    methods = read_methods(fragments)
    assert methods['x'].cost_of is methods['n'] and not methods['x'].selects
    assert methods['m'].key('') == fingerprint(['', dict(texts=['a']), None])  # as ever
    fragments['n'] = dict(search=dict(steps=2))
    changed = read_methods(fragments)
    assert changed['m'].key('') == methods['m'].key('')
    assert changed['x'].key('') != methods['x'].key('')


def test_random_prompts_may_have_the_cost_of_another_method():
    fragments = dict(x=dict(initial={}, cost_of='n'), n=dict(search={}))
    assert read_methods(fragments)['x'].cost_of.name == 'n'
    fragments['x'] = dict(search={}, cost_of='n')
    with pytest.raises(ValueError, match="cost_of='n', which goes with texts or initial, without"):
        read_methods(fragments)


def test_old_names_of_methods():
    with pytest.warns(FutureWarning, match="'guided' is called 'gp' now"):
        assert current_names(['ap', 'guided'], {'ap', 'gp'}) == ['ap', 'gp']
    assert current_names(['guided', 'x'], {'guided', 'gp'}) == ['guided', 'x']  # a method of theirs


def test_a_critic_of_none_is_not_the_hooks():
    methods = read_methods(dict(a={}, b=dict(critic=None), c=dict(critic=False)))
    hook = dict(type='mmgap.ClipCritic')
    assert [m.choose_critic(hook) for m in methods.values()] == [hook, None, False]


def test_the_key_names_what_decides(tmp_path):
    (tmp_path / 'words.txt').write_text('a\n')
    words = dict(texts=str(tmp_path / 'words.txt'), about='x')
    fragments = dict(w=words, ap=dict(search={}), own=dict(prompts_of='ap'))

    def keys(shared: str = 's', **changes: dict) -> dict[str, str]:
        methods = read_methods({**fragments, **changes})
        return {name: method.key(shared) for name, method in methods.items()}

    before = keys()
    assert before['ap'] == fingerprint(['s', dict(search={}), None])
    assert before['own'] == fingerprint(['s', dict(prompts_of='ap'), before['ap']])
    assert len(set(before.values())) == 3 and not set(before.values()) & set(keys('t').values())
    assert keys(w=dict(words, about='y')) == before
    after = keys(ap=dict(search=dict(steps=1)))
    assert after['w'] == before['w'] and after['own'] != before['own']
    (tmp_path / 'words.txt').write_text('b\n')
    assert keys()['w'] != before['w']


def test_the_key_names_what_is_in_files(tmp_path):
    """Sentences, pictures and prompts by what they are, wherever a fragment names them."""
    (tmp_path / 'pictures' / 'a').mkdir(parents=True)
    places, prompt = tmp_path / 'places.txt', tmp_path / 'prompt.safetensors'
    picture = tmp_path / 'pictures' / 'a' / 'one.png'
    terms = [dict(descriptions=str(places)), dict(images=str(tmp_path / 'pictures'))]
    fragment = dict(search=dict(init=str(prompt)), feedback=terms)
    seen = []
    for file in (places, prompt, picture, places, prompt, picture):
        file.write_text('x' * (len(seen) + 1))
        seen.append(read_methods(dict(m=fragment))['m'].key('s'))
    assert len(set(seen)) == len(seen)
    assert contents_of(dict(a=[1, None, 'no.txt'], images='nowhere')) == []


def test_keys_are_explained():
    assert len(KEYS) == 13 and all(f'\n        {key}: ' in Method.__doc__ for key in KEYS)
