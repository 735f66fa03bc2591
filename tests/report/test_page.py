# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgap.files import write_image, write_json
from mmgap.loop.report import group_report
from mmgap.report import page, read_run, render_page, write_page
from tests.support.reports import fake_run, noise

VOID = {'meta', 'link', 'img', 'br', 'rect', 'path', 'circle', 'polyline'}


class Document(HTMLParser):
    """What a page is made of, and whether its elements are closed in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ''
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words += data


def change(work_dir: Path, **fields) -> Path:
    """Write other values to the summary of a run; None takes a field out."""
    path = work_dir / 'gap' / 'summary.json'
    summary = {**json.loads(path.read_text()), **fields}
    write_json(path, {name: value for name, value in summary.items() if value is not None})
    return work_dir


def page_of(work_dir: Path) -> str:
    return write_page(work_dir).read_text()


def test_the_page_says_all_that_is_there_and_needs_nothing_else(tmp_path):
    made = page_of(fake_run(tmp_path, rounds=2))
    document = Document(made)
    for tag, attributes in document.tags:
        assert tag not in ('script', 'iframe', 'object')
        assert not [name for name in attributes if name.startswith('on')]
        for name in ('src', 'href'):
            assert attributes.get(name, '#').startswith(('#', 'data:')), (tag, attributes)
    assert '@import' not in made and 'url(' not in made and "default-src 'none'" in made
    words = document.words
    for said in ('gap_birds', 'ImageClassifier, ResNet 18', 'adversarial prompts (AP)'):
        assert said in words
    for said in ('ll', 'lw', 'wl', 'ww', 'worst group', '4.8\u202f%', '74.4\u202f%', '+69.6'):
        assert said in words
    for said in ('r0-p0', 'r0-p1', 'r1-p0', 'r1-p1', 'forest', 'lake', 'step 2', 'Round 1'):
        assert said in words
    for said in ('A probe tells them apart.', '96.5\u202f%', 'loss 0.082', '30\u202fs', '833'):
        assert said in words
    for said in ('generator', 'mmgap.AdversarialLoss', '2.11.0', '2\u202fmin 5\u202fs', 'seed'):
        assert said in words
    charts = [attributes for tag, attributes in document.tags if attributes.get('role') == 'img']
    assert len(charts) == 2 * 2 + 4  # two for each round, a small one for each prompt
    images = [attributes for tag, attributes in document.tags if tag == 'img']
    assert len(images) == 2 * (2 * 4 + 2 * 4) and all(image['alt'] for image in images)


def test_made_again_it_is_the_same(tmp_path):
    first = write_page(fake_run(tmp_path)).read_bytes()
    assert write_page(tmp_path).read_bytes() == first
    other = write_page(tmp_path, tmp_path / 'elsewhere' / 'page.html')
    assert other.read_bytes() == first
    assert not [path for path in (tmp_path / 'gap').iterdir() if path.name.startswith('.')]


def test_names_are_no_markup(tmp_path):
    bad = '<img src=x onerror=alert(1)>"\'&'
    run = fake_run(tmp_path, classes=(bad, 'b'))
    report = group_report({'worst_group': 0.1, f'group/{bad.replace("/", "")}': 0.1})
    summary = json.loads((run / 'gap' / 'summary.json').read_text())
    summary['rounds'][0]['prompts'][0].update(alarm=bad, words=[[[bad, 0.5]]])
    change(
        run,
        before=report,
        after=report,
        rounds=summary['rounds'],
        config=f'{bad.replace("/", "")}.py',
        model=bad,
        stopped=bad,
        rounds_missed=dict(why=bad),
        injection=dict(mode=bad, why=bad),
        settings={bad: {bad: bad}, 'x': bad},
        versions={bad: bad},
    )
    document = Document(page_of(run))
    assert document.words.count(bad) >= 12
    for _tag, attributes in document.tags:
        assert 'onerror' not in attributes and attributes.get('src', 'data:').startswith('data:')


def test_a_prompt_cannot_name_a_file_elsewhere(tmp_path):
    run = fake_run(tmp_path / 'run')
    write_image(tmp_path / 'secret.png', Image.fromarray(noise(20, 5)))
    rounds = json.loads((run / 'gap' / 'summary.json').read_text())['rounds']
    rounds[0]['prompts'] = [dict(id='../../../secret', snapshots=[1, 2, 3])]
    shutil.rmtree(run / 'gap' / 'round_0')
    assert 'data:image' not in page_of(change(run, rounds=rounds))


OLDER = ('config', 'model', 'settings', 'injection', 'seconds', 'versions', 'seed', 'stopped')


def test_runs_of_older_versions_have_a_page(tmp_path):
    run = fake_run(tmp_path)
    shutil.rmtree(run / 'gap' / 'round_0')
    rounds = json.loads((run / 'gap' / 'summary.json').read_text())['rounds']
    for name in ('pairs', 'evaluations', 'unselected'):
        del rounds[0][name]
    for prompt in rounds[0]['prompts']:
        for name in ('words', 'snapshots', 'evaluations', 'alarm', 'kept_step'):
            del prompt[name]
    for path in (run / 'gap' / 'prompts').glob('*.json'):
        path.write_text('{}')
    document = Document(page_of(change(run, rounds=rounds, **dict.fromkeys(OLDER))))
    assert '74.4\u202f%' in document.words and 'contact sheet of round 0' in str(document.tags)
    assert tmp_path.name in document.words  # no config is known
    (run / 'gap' / 'search' / 'round_0.safetensors').write_bytes(b'of another version')
    words = Document(page_of(run)).words
    assert 'Not shown: search curves of round 0: ' in words and 'r0-p0' in words


def test_a_run_that_goes_on_has_a_page(tmp_path):
    run = change(fake_run(tmp_path), after=None)
    assert 'Not finished. Worst group at 4.8\u202f% before the first round' in page_of(run)
    assert 'Trained; the config has nothing to test on' in page_of(change(run, finished=True))
    (run / 'gap' / 'summary.json').unlink()
    manifest = run / 'gap' / 'pool' / 'manifest.jsonl'
    manifest.write_text(manifest.read_text() + '{"file": "ima')  # being written right now
    words = Document(page_of(run)).words
    assert 'Not finished' in words and 'This round is not over' in words
    assert 'forest' in words and 'Search loss' in words and 'Cost' not in words
    shutil.rmtree(run / 'gap' / 'prompts')
    assert 'r0-p1' in Document(page_of(run)).words


def test_files_of_another_run_in_the_same_folder_are_left_out(tmp_path):
    rounds = json.loads((fake_run(tmp_path, 3) / 'gap' / 'summary.json').read_text())['rounds']
    assert len(read_run(change(tmp_path, rounds=rounds[:1])).rounds) == 1  # it is finished
    assert len(read_run(change(tmp_path, after=None)).rounds) == 2  # the next may be running
    assert 'Round 1' in page_of(tmp_path)


def test_a_run_without_search_or_rounds(tmp_path):
    run = fake_run(tmp_path)
    summary = json.loads((run / 'gap' / 'summary.json').read_text())
    shutil.rmtree(run / 'gap' / 'search')
    settings = dict(summary['settings'], search=dict(steps=0))
    for prompt in summary['rounds'][0]['prompts']:
        prompt.update(steps=0, snapshots=[0])
    for path in (run / 'gap' / 'round_0').glob('r0-*.png'):
        Image.open(path).crop((0, 0, 10, 6)).save(path)
    words = Document(page_of(change(run, settings=settings, rounds=summary['rounds']))).words
    assert 'without a search' in words and 'Search loss' not in words
    metrics = group_report({'accuracy/top1': 91.0})  # InjectionHook, an evaluator without groups
    page = page_of(change(run, rounds=[], before=None, after=metrics))
    assert 'accuracy/top1' in page and '91.000' in page and 'Search and images' not in page


def test_of_depth_less_is_better(tmp_path):
    reports = [
        group_report(dict(abs_rel=mean, worst_group=worst, mean=mean, **{'group/night': worst}))
        for mean, worst in ((0.2, 0.5), (0.15, 0.25))
    ]
    page = page_of(change(fake_run(tmp_path), before=reports[0], after=reports[1]))
    words = Document(page).words
    assert 'AbsRel of the worst group from 0.500 to 0.250' in words
    assert 'AbsRel on the test data of the config; less is better' in words
    assert 'class="good">−0.250' in page and 'class="bad">' not in page
    assert 'ixels within a factor of 1.25' in words and 'Accuracy of the target' not in words


def test_large_images_are_made_small_enough(tmp_path, monkeypatch):
    run = fake_run(tmp_path)
    for path in (run / 'gap' / 'round_0').glob('*.png'):
        rows = 2 if path.stem == 'pairs' else 1
        write_image(path, Image.fromarray(np.tile(noise(192, 192), (rows, 4, 1))))
    whole = len(render_page(read_run(run)))
    monkeypatch.setattr(page, 'LIMIT', whole // 3)
    smaller = render_page(read_run(run))
    assert len(smaller) <= whole // 3 and 'step 1' in Document(smaller).words
    monkeypatch.setattr(page, 'LIMIT', 1)  # the ends of each search at least
    words = Document(render_page(read_run(run))).words
    assert 'step 0' in words and 'step 1' not in words and 'step 2' in words


@pytest.mark.parametrize(
    'break_it, error, words',
    [
        (shutil.rmtree, FileNotFoundError, 'work directory .* does not exist'),
        (lambda run: shutil.rmtree(run / 'gap'), FileNotFoundError, 'has no folder gap'),
        (
            lambda run: [shutil.rmtree(run / 'gap'), (run / 'gap').mkdir()],
            FileNotFoundError,
            'the first round has not begun',
        ),
        (
            lambda run: (run / 'gap' / 'summary.json').write_text('{"rounds": ['),
            ValueError,
            'summary.json is not JSON',
        ),
        (
            lambda run: (run / 'gap' / 'summary.json').write_text('[]'),
            ValueError,
            'summary.json must hold a JSON object, got list',
        ),
        (
            lambda run: (run / 'gap' / 'pool' / 'manifest.jsonl').write_text('{\n'),
            ValueError,
            'manifest.jsonl line 1 is not JSON',
        ),
        (
            lambda run: (run / 'gap' / 'round_0' / 'r0-p0.png').write_bytes(b'no image'),
            ValueError,
            'r0-p0.png is no image',
        ),
        (
            lambda run: Image.new('RGB', (21, 6)).save(run / 'gap' / 'round_0' / 'r0-p0.png'),
            ValueError,
            'is 21x6, which are not 1 rows of 4 images',
        ),
    ],
)
def test_what_cannot_be_read_is_named(break_it, error, words, tmp_path):
    run = fake_run(tmp_path / 'run')
    break_it(run)
    with pytest.raises(error, match=words):
        write_page(run)
