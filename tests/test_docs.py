# SPDX-License-Identifier: Apache-2.0
"""Documentation: links and anchors lead somewhere, and files that it names are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import mmgap

REPO = Path(__file__).resolve().parents[1]
# results.md are written by the benchmark, and say what was run at the time.
PAGES = sorted(
    path.relative_to(REPO).as_posix()
    for path in (*REPO.glob('*.md'), *REPO.glob('docs/**/*.md'))
    if path.name != 'results.md'
)
FENCE = re.compile(r'^ *(```|~~~).*?^ *\1', re.MULTILINE | re.DOTALL)
CODE = re.compile(r'(`+)(?:(?!\1).)+\1')
LINK = re.compile(r'\]\((?P<path>[^)\s#]*)(?:#(?P<anchor>[^)\s]*))?\)')
NAMED = re.compile(r'(?<![\w/.])((?:tests|tools)/[\w/.-]*\w)(?:::(\w+))?')
# A stand-in for any, and one of MMSegmentation's.
OTHERS = {'tools/NAME.py', 'tools/dataset_converters/nyu.py'}

pytestmark = pytest.mark.skipif(not (REPO / 'docs').is_dir(), reason='docs/ is in checkouts alone')


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding='utf-8')


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a page's headings, as code hosts make them."""
    slugs: Counter[str] = Counter()
    found = set()
    for title in re.findall(r'^#{1,6} +(.+?) *$', FENCE.sub('', text_of(path)), re.MULTILINE):
        title = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title)
        slug = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
        found.add(f'{slug}-{slugs[slug]}' if slugs[slug] else slug)
        slugs[slug] += 1
    return frozenset(found)


def links(page: Path) -> Iterator[tuple[str, str | None]]:
    """Path and anchor of each link that leads into the repository."""
    for match in LINK.finditer(CODE.sub('', FENCE.sub('', text_of(page)))):
        if not re.match(r'\w+:', match['path']):
            yield match['path'], match['anchor']


def why_broken(page: Path, path: str, anchor: str | None) -> str | None:
    """What is wrong with a link of a page; None for nothing."""
    target = page.parent / path if path else page
    if path.startswith('/') or not target.exists():
        return 'leads nowhere'
    if REPO not in target.resolve().parents:
        return 'leads out of the repository'
    if target.is_dir():  # of which code hosts show the README
        target = target / 'README.md'
        if not target.exists():
            return 'is a folder without README.md'
    if anchor is not None and anchor not in anchors(target):
        return 'has no such heading'
    return None


@pytest.mark.parametrize('name', PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = REPO / name
    broken = {
        f'{path}#{anchor}' if anchor else path: why
        for path, anchor in links(page)
        if (why := why_broken(page, path, anchor))
    }
    assert not broken


# The changelog tells of files that have gone.
@pytest.mark.parametrize('name', [name for name in PAGES if name != 'CHANGELOG.md'])
def test_tests_and_tools_that_are_named_are_there(name: str) -> None:
    missing = set()
    for path, test in NAMED.findall(text_of(REPO / name)):
        if path not in OTHERS and not (REPO / path).exists():
            missing.add(path)
        elif test and f'def {test}(' not in text_of(REPO / path):
            missing.add(f'{path}::{test}')
    assert not missing


def test_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / 'page.md'
    page.write_text(
        '# One `thing`, twice\n[a](b.md#c) ![d](e.png) [f](https://g.h/i#j) `[k](l.md)`\n'
        '```\n# No heading\n[m](n.md)\n```\n# One thing twice\n[o](#p)\n'
    )
    assert list(links(page)) == [('b.md', 'c'), ('e.png', None), ('', 'p')]
    assert anchors(page) == {'one-thing-twice', 'one-thing-twice-1'}


def test_what_code_hosts_read_is_valid() -> None:
    citation = yaml.safe_load(text_of(REPO / 'CITATION.cff'))
    assert citation['version'] == mmgap.__version__
    assert citation['preferred-citation']['title'] and citation['preferred-citation']['authors']
    for name in ('bug', 'feature'):
        form = yaml.safe_load(text_of(REPO / f'.github/ISSUE_TEMPLATE/{name}.yml'))
        assert {'name', 'description', 'body'} <= set(form)
        ids = [field['id'] for field in form['body']]
        assert len(ids) == len(set(ids)) and all('label' in f['attributes'] for f in form['body'])
    hooks = yaml.safe_load(text_of(REPO / '.pre-commit-config.yaml'))['repos'][0]['hooks']
    assert [hook['id'] for hook in hooks] == ['ruff-check', 'ruff-format', 'mypy']
