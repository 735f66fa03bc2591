# SPDX-License-Identifier: Apache-2.0
"""The section of a round: what was drawn, how the search went, what each prompt became."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmgap.report.charts import Line, line_chart, spark
from mmgap.report.facts import Round, Run
from mmgap.report.markup import count, facts, note, number, text
from mmgap.report.pictures import cells, inline, read_image
from mmgap.report.sections import measure_of

OPEN = 12  # prompts that are not folded up
COLOURS = 6  # of classes; more begin anew
SHEET = 1100  # pixels; width of a contact sheet
EVALUATED = (
    'Loss and accuracy of the target: of images around sources that the search has not seen, with '
    'the prompt as it started and as it was found. '
)
DRAWN = (
    'Loss, source → image: means over the images of the pool and over the sources that they were '
    'drawn around.'
)
FILE_NAME = re.compile(r'[\w.-]+')


def section(run: Run, one: Round, width: int, whole: bool) -> str:
    """The section of a round.

    Args:
        run: The run.
        one: The round.
        width: Pixels of an image at most.
        whole: Whether all steps of a prompt that there are pictures of are shown.
    """
    classes = list(dict.fromkeys(str(p.get('class')) for p in one.prompts.values()))
    colours = {name: place % COLOURS for place, name in enumerate(classes)}
    parts = [_facts(one), _pairs(run, one, width), _curves(one, colours, measure_of(run).share)]
    cards = [_prompt(run, one, about, colours, width, whole) for about in one.prompts.values()]
    if cards:
        # With search.holdout=0 no prompt is evaluated.
        evaluated = any(p.get('target_loss_after') is not None for p in one.prompts.values())
        parts.append('<h3>Prompts</h3>' + note(EVALUATED * evaluated + DRAWN))
        parts += cards[:OPEN]
    if len(cards) > OPEN:
        more = ''.join(cards[OPEN:])
        parts.append(f'<details><summary>{len(cards) - OPEN} more</summary>{more}</details>')
    return ''.join(parts)


def _facts(one: Round) -> str:
    report = one.report
    if not report:
        return note('This round is not over; this is what there is so far.', 'warn')
    said = [count(len(one.prompts), 'prompt'), count(report.get('images', 0), 'image')]
    said += [
        f'{number(report[name])} {words}'
        for name, words in (('dropped', 'dropped by the critic'), ('unselected', 'not selected'))
        if report.get(name)
    ]
    said += [
        f'{name} {number(float(report[name]))}'
        for name in ('agreement', 'diversity')
        if report.get(name) is not None
    ]
    return f'<p>{", ".join(said)}.</p>'


def _pairs(run: Run, one: Round, width: int) -> str:
    """Sources and what was drawn around them; the whole sheet of older versions."""
    pairs = one.report.get('pairs')
    if not pairs:
        path = run.folder / f'round_{one.number}.png'
        if not path.is_file():
            return ''
        words = f'contact sheet of round {one.number}'
        image = inline(read_image(path), words, SHEET).replace('class="tiny"', '')
        return f'<h3>Contact sheet</h3><div class="wide sheet">{image}</div>'
    images = cells(run.folder / f'round_{one.number}' / 'pairs.png', len(pairs), rows=2)
    if not images:
        return ''
    samples = {sample.get('file'): sample for sample in one.samples}
    figures = []
    for pair, source, made in zip(pairs, images, images[len(pairs) :], strict=False):
        name, sample = str(pair.get('class')), samples.get(pair.get('file'), {})
        losses = [sample.get('target_loss_source'), sample.get('target_loss_image')]
        said = ''
        if None not in losses:
            said = f'<br>{number(losses[0])} → {number(losses[1])}'
        figures.append(
            f'<figure>{inline(source, f"source, {name}", width)}'
            f'{inline(made, f"generated, {name}", width)}'
            f'<figcaption>{text(name)}{said}</figcaption></figure>'
        )
    return (
        '<h3>Sources, and what was drawn around them</h3>'
        f'<div class="pairs">{"".join(figures)}</div>'
        + note(
            'Above the source, below the generated image with the same label; the numbers are the '
            'loss of the target on either.'
        )
    )


def _curves(one: Round, colours: Mapping[str, int], classes: bool) -> str:
    losses, hits = [], []
    for id, curve in one.curves.items():
        colour = colours.get(str(one.prompts[id].get('class')), 0)
        losses.append(Line(id, _known(curve.losses), colour))
        hits.append(Line(id, _known(curve.hits), colour))
    accuracy = 'Accuracy of the target' if classes else 'Pixels within a factor of 1.25'
    charts = [
        f'<figure><figcaption>{title}</figcaption>{chart}</figure>'
        for title, lines in (('Search loss', losses), (accuracy, hits))
        if (chart := line_chart(lines, f'{title} by step', 'search step'))
    ]
    if not charts:
        return ''
    again = sum(curve.restarts > 0 for curve in one.curves.values())
    said = (
        'One line for each prompt: the mean over the images of a step. Where lines are long, the '
    )
    said += 'bold one is a running mean.'
    if again:
        said += f' {count(again, "prompt")} began anew; what was before that is not shown.'
    return (
        f'<h3>Search</h3>{_legend(colours)}<div class="charts">{"".join(charts)}</div>{note(said)}'
    )


def _prompt(
    run: Run,
    one: Round,
    about: Mapping[str, Any],
    colours: Mapping[str, int],
    width: int,
    whole: bool,
) -> str:
    id, colour = str(about['id']), colours[str(about.get('class'))]
    curve = one.curves.get(id)
    chart = spark(Line(id, _known(curve.losses), colour), f'search loss of {id}') if curve else ''
    name = about.get('class')
    chip = f'<span class="chip b{colour}">{text(name)}</span>' if name is not None else ''
    rows = [*_effects(about, measure_of(run).share), *_of_images(one, id)]
    alarm = ''
    if about.get('alarm'):
        kept = number(about.get('kept_step'))
        alarm = note(f'Alarm: {text(about["alarm"])}; kept as it was at step {kept}.', 'warn')
    return (
        f'<article><div class="head"><h4>{text(id)}</h4>{chip}{chart}</div>'
        f'{_development(run, one, about, width, whole)}{facts(rows, "facts")}'
        f'{_words(about.get("words"))}{alarm}</article>'
    )


def _effects(about: Mapping[str, Any], classes: bool) -> list[tuple[str, str]]:
    """What the search of a prompt has changed on sources that it has not seen."""
    rows = []
    right = 'accuracy of the target' if classes else 'pixels within a factor of 1.25'
    for name, words in (('target_loss', 'loss of the target'), ('accuracy', right)):
        before, after = about.get(f'{name}_before'), about.get(f'{name}_after')
        if after is not None:
            rows.append((words, f'{number(before)} → <b>{number(after)}</b>'))
    if about.get('steps') is not None:
        again = about.get('restarts') or 0
        began = f', began anew {count(again, "time")}' if again else ''
        rows.append(('search', f'{count(about["steps"], "step")}{began}'))
    return rows


def _of_images(one: Round, id: str) -> list[tuple[str, str]]:
    """What was drawn with a prompt."""
    own = one.by_prompt.get(id)
    if not own:
        return []
    kept = sum(sample.get('kept', True) for sample in own)
    drawn = '' if kept == len(own) else f' of {number(len(own))}'
    rows = [('images', f'{number(kept)}{drawn}')]
    means = []
    for name in ('target_loss_source', 'target_loss_image'):
        values = [s[name] for s in own if s.get(name) is not None]
        means.append(sum(values) / len(values) if values else None)
    if None not in means:
        rows.append(('loss, source → image', f'{number(means[0])} → <b>{number(means[1])}</b>'))
    return rows


def _development(run: Run, one: Round, about: Mapping[str, Any], width: int, whole: bool) -> str:
    steps, id = about.get('snapshots') or [], str(about['id'])
    if not steps or not FILE_NAME.fullmatch(id):  # an id is a part of a path here
        return ''
    path = run.folder / f'round_{one.number}' / f'{id}.png'
    images = cells(path, 1 + len(steps))
    named = list(zip(images, ['source', *(f'step {step}' for step in steps)], strict=False))
    if not whole:
        named = [*named[:2], *named[2:][-1:]]
    figures = ''.join(
        f'<figure>{inline(image, f"{id}, {words}", width)}<figcaption>{text(words)}</figcaption>'
        '</figure>'
        for image, words in named
    )
    return f'<div class="strip">{figures}</div>' if figures else ''


def _words(found: Sequence[Sequence[Sequence[Any]]] | None) -> str:
    """The nearest words of each token, the nearest first."""
    if not found:
        return ''
    tokens = []
    for nearest in found:
        first, *others = [
            f'{text(word)} <small>{number(float(similar))}</small>' for word, similar in nearest
        ]
        tokens.append(f'<li><b>{first}</b> {" ".join(others)}</li>')
    return (
        '<div class="words"><span>nearest words of each token, with the cosine</span>'
        f'<ol>{"".join(tokens)}</ol></div>'
    )


def _legend(colours: Mapping[str, int]) -> str:
    if len(colours) < 2:  # nothing to tell apart
        return ''
    parts = [
        f'<span><i class="b{colour}"></i>{text(name)}</span>' for name, colour in colours.items()
    ]
    return f'<p class="legend">{"".join(parts)}</p>'


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
