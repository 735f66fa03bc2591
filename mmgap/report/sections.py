# SPDX-License-Identifier: Apache-2.0
"""The sections of the page that are about the whole run. What is not known is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmgap.report.charts import bars, stacked
from mmgap.report.facts import Run
from mmgap.report.markup import DASH, count, facts, note, number, percent, seconds, table, text

ATTACKS = ('AdversarialLoss', 'DepthAdversarialLoss')
# In the order in which a run goes through them.
STAGES = ('training', 'search', 'synthesis', 'injection', 'evaluation')


@dataclass(frozen=True)
class Measure:
    """How the numbers of a group report are read.

    Attributes:
        name: Its name.
        lower: Whether less is better.
        share: Whether it is a share of one, which people read in percent.
    """

    name: str
    lower: bool = False
    share: bool = True

    def show(self, value: float | None) -> str:
        """A value of it."""
        if value is None:
            return DASH
        return percent(value) if self.share else number(float(value), 3)


MEASURES = dict(
    accuracy=Measure('accuracy'),
    f1=Measure('F1'),
    abs_rel=Measure('AbsRel', lower=True, share=False),
)


def measure_of(run: Run) -> Measure:
    """The measure of a run's evaluations."""
    report = run.group_report('after') or run.group_report('before')
    return MEASURES.get(str(report.get('measure')), MEASURES['accuracy'])


def method_of(run: Run) -> str | None:
    """What the search of a run was told to go for; None where nobody knows."""
    if run.summary.get('method'):
        return str(run.summary['method'])
    settings = run.summary.get('settings') or {}
    provenance: dict[str, Any] = next(
        (p['settings'] for r in run.rounds for p in r.prompts.values() if p.get('settings')), {}
    )
    search = settings.get('search') or provenance
    feedback = settings.get('feedback') or provenance.get('feedback')
    if not feedback:
        return None
    if search.get('steps') == 0:
        return 'prompts as they start, without a search'
    kinds = [str(term.get('type')).rpartition('.')[2] for term in feedback]
    attacks = sum(kind in ATTACKS for kind in kinds)
    own = all(kind in ATTACKS or kind.endswith('Guidance') for kind in kinds)
    if not own:
        return f'prompts searched with {", ".join(kinds)}'
    if attacks == len(kinds):
        return 'adversarial prompts (AP)'
    return 'guided adversarial prompts (GAP)' if attacks else 'guided prompts (GP)'


def header(run: Run) -> str:
    """What ran, and what came of it in one sentence."""
    ran = [run.summary.get('model'), method_of(run)]
    about = ' · '.join(text(fact) for fact in ran if fact)
    parts = [f'<p class="eyebrow">{text(run.name)}</p>', f'<h1>{_headline(run)}</h1>']
    if about:
        parts.append(f'<p class="about">{about}</p>')
    parts.append(_tiles(run))
    parts += [note(text(words), 'warn') for words in _warnings(run)]
    return f'<header>{"".join(parts)}</header>'


def _headline(run: Run) -> str:
    before, after, measure = run.group_report('before'), run.group_report('after'), measure_of(run)
    first, last = before.get('worst_group'), after.get('worst_group')
    worst = 'Worst group' if measure.name == 'accuracy' else f'{measure.name} of the worst group'
    if first is not None and last is not None:
        return (
            f'{worst} from <span class="old">{measure.show(first)}</span> to '
            f'<span class="new">{measure.show(last)}</span>'
        )
    if last is not None:
        return f'{worst} at <span class="new">{measure.show(last)}</span>'
    if after:
        return 'Trained, and tested without groups'
    if run.finished:
        return 'Trained; the config has nothing to test on'
    if first is not None:
        return f'Not finished. {worst} at {measure.show(first)} before the first round'
    return 'Not finished'


def _tiles(run: Run) -> str:
    before, after, measure = run.group_report('before'), run.group_report('after'), measure_of(run)
    tiles: list[tuple[str, str]] = []
    if after.get('mean') is not None:
        old = f'{measure.show(before.get("mean"))} → ' if before.get('mean') is not None else ''
        tiles.append((f'{old}{measure.show(after["mean"])}', f'mean {measure.name} of groups'))
    if run.summary.get('images'):
        tiles.append((number(run.summary['images']), 'generated images to train on'))
    prompts = sum(len(one.prompts) for one in run.rounds)
    if prompts:
        tiles.append((number(prompts), f'prompts in {count(len(run.rounds), "round")}'))
    if run.summary.get('injection'):
        tiles.append((text(run.summary['injection'].get('mode')), 'how they entered training'))
    total = (run.summary.get('seconds') or {}).get('total')
    if total is not None:
        tiles.append((seconds(total), 'in all'))
    cells = ''.join(f'<div><b>{value}</b><span>{words}</span></div>' for value, words in tiles)
    return f'<div class="tiles">{cells}</div>' if cells else ''


def _warnings(run: Run) -> list[str]:
    missed = run.summary.get('rounds_missed')
    stopped = run.summary.get('stopped')
    return [
        *([str(missed.get('why'))] if missed else []),
        *([f'No further round has begun: {stopped}'] if stopped else []),
        *(f'Not shown: {words}' for words in run.unread),
    ]


def groups(run: Run) -> str:
    """The table before and after, with a pair of bars for each group."""
    before, after, measure = run.group_report('before'), run.group_report('after'), measure_of(run)
    if not before and not after:
        return ''
    names = list({**before.get('groups', {}), **after.get('groups', {})})
    if not names:
        return _metrics(before, after)
    pairs = {
        name: (before.get('groups', {}).get(name), after.get('groups', {}).get(name))
        for name in names
    }
    totals = {
        name.replace('_', ' '): (before.get(name), after.get(name))
        for name in ('worst_group', 'mean', 'adjusted')
        if before.get(name) is not None or after.get(name) is not None
    }
    known = [v for pair in [*pairs.values(), *totals.values()] for v in pair if v is not None]
    top = 1.0 if measure.share else max(known, default=0.0)
    rows = [
        *(_group_row(text(name), pair, measure, top) for name, pair in pairs.items()),
        *(_group_row(f'<b>{text(name)}</b>', pair, measure, top) for name, pair in totals.items()),
    ]
    better = 'less' if measure.lower else 'more'
    legend = (
        '<p class="legend"><span><i class="before"></i>before the first round</span>'
        '<span><i class="after"></i>at the end</span></p>'
    )
    said = (
        f'{text(measure.name[0].upper() + measure.name[1:])} on the test data of the config; '
        f'{better} is better. Between the two, training also went on: not all of the difference '
        'comes from the images.'
    )
    if not before or not after:
        said = said.partition(' Between')[0]
    head = ['group', '', 'before', 'after', 'change']
    return legend + table(head, rows, 'groups') + note(said)


def _group_row(
    name: str, pair: tuple[float | None, float | None], measure: Measure, top: float
) -> list[str]:
    before, after = pair
    change = DASH
    if before is not None and after is not None:
        delta = after - before
        good = (delta < 0) if measure.lower else (delta > 0)
        digits = f'{100 * delta:+.1f}' if measure.share else f'{delta:+.3f}'
        change = f'<span class="{"good" if good else "bad" if delta else ""}">{digits}</span>'
        change = change.replace('-', '−')
    bar = bars([('before', before), ('after', after)], top)
    return [name, bar, measure.show(before), f'<b>{measure.show(after)}</b>', change]


def _metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Of an evaluator that knows no groups: its numbers as they are."""
    first, last = before.get('metrics') or {}, after.get('metrics') or {}
    rows = [
        [text(name), number(first.get(name), 3), number(last.get(name), 3)]
        for name in {**first, **last}
    ]
    said = 'The evaluator of the config knows no groups; these are its own metrics.'
    return table(['metric', 'before', 'after'], rows) + note(said) if rows else ''


def injection(run: Run) -> str:
    """What the probe said, and which way the images took into training."""
    found = run.summary.get('injection')
    if not found:
        return ''
    parts = [f'<p>Mode <b>{text(found.get("mode"))}</b>. {text(found.get("why", ""))}</p>']
    probes = [
        ('generated from real images', found.get('generated')),
        ('real from other real images', found.get('control')),
    ]
    rows = [
        [text(name), bars([('after', value)], 1.0), f'<b>{percent(value)}</b>']
        for name, value in probes
        if value is not None
    ]
    if rows:
        parts.append(table(['the probe tells', '', 'accuracy'], rows, 'groups'))
        parts.append(
            note(
                'Accuracy of a linear probe on the features of the model, on images that it was '
                f'not fitted to. {percent(0.5, 0)} is a guess: the model sees no difference.'
            )
        )
    refit = found.get('refit')
    if refit:
        parts.append(
            f'<p>Refit at the end: {count(refit["images"], "image")}, '
            f'{count(refit["steps"], "step")}, loss {number(refit["loss"], 3)}.</p>'
        )
    return ''.join(parts)


def cost(run: Run) -> str:
    """Seconds of each stage, images drawn and kept, and network evaluations."""
    spent = run.summary.get('seconds') or {}
    stages = [(name, spent[name]) for name in STAGES if spent.get(name)]
    parts = []
    if stages:
        legend = ''.join(
            f'<span><i class="c{i}"></i>{text(name)} <b>{seconds(value)}</b></span>'
            for i, (name, value) in enumerate(stages)
        )
        parts.append(stacked([value for _, value in stages]) + f'<p class="legend">{legend}</p>')
    rows = [row for one in run.rounds if (row := _round_costs(one.number, one.report))]
    if rows:
        head = ['round', 'prompts', 'kept', 'dropped', 'not selected', 'search', 'synthesis']
        head += ['evaluations, search', 'evaluations, images', 'an image']
        parts.append(table(head, rows))
        parts.append(
            note(
                'Dropped: images that the critic refused. Not selected: less useful than others. '
                'Evaluations: calls of the UNet on one image; one that gradient goes back through '
                'counts three times.'
            )
        )
    return ''.join(parts)


def _round_costs(index: int, report: Mapping[str, Any]) -> list[str]:
    if not report:
        return []
    searched = [prompt.get('evaluations') for prompt in report.get('prompts') or []]
    in_search = None if None in searched else sum(searched)
    drawn, kept = report.get('evaluations'), report.get('images')
    each = None
    if in_search is not None and drawn and kept:
        each = (in_search + drawn) / kept
    spent = report.get('seconds') or {}
    return [
        number(index),
        number(len(searched)),
        *(number(report.get(name)) for name in ('images', 'dropped', 'unselected')),
        *(seconds(spent[n]) if n in spent else DASH for n in ('search', 'synthesis')),
        *(number(None if v is None else round(v)) for v in (in_search, drawn, each)),
    ]


def settings(run: Run) -> str:
    """All settings of the hook, folded up by what they are about."""
    found = run.summary.get('settings')
    if not found:
        return ''
    blocks = {name: value for name, value in found.items() if isinstance(value, (dict, list))}
    others = {name: value for name, value in found.items() if name not in blocks}
    if run.summary.get('seed') is not None:
        others['seed'] = run.summary['seed']
    parts = [_folded('when and how much', others)] if others else []
    parts += [_folded(name, value) for name, value in blocks.items()]
    return ''.join(parts)


def _folded(name: str, value: Any) -> str:
    rows = ''.join(f'<dt>{text(key)}</dt><dd>{text(said)}</dd>' for key, said in _flat(value, ''))
    return f'<details><summary>{text(name)}</summary><dl>{rows}</dl></details>'


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    """Nested settings as dotted names and their values."""
    inner: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        inner = list(enumerate(value))
    if not inner:
        return [(name, json.dumps(value, ensure_ascii=False) if value != '' else "''")]
    return [
        pair for key, one in inner for pair in _flat(one, f'{name}.{key}' if name else str(key))
    ]


def versions(run: Run) -> str:
    """Versions of what decides a result."""
    found = run.summary.get('versions') or {}
    return facts([(text(name), text(value)) for name, value in found.items()], 'facts')
