# SPDX-License-Identifier: Apache-2.0
"""What a run reports: the figures of ``summary.json`` and the table in the log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmgap.feedback import ClipCritic, Critic, diversity
from mmgap.pool import SamplePool

# By the metric that shows that it is there.
MEASURES = dict(abs_rel='abs_rel', f1='f1_macro')
TITLES = dict(
    accuracy='accuracy on test', abs_rel='AbsRel on test (lower is better)', f1='F1 on test'
)


def group_report(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Sort an evaluator's metrics by what the summary calls them.

    Args:
        metrics: What MMEngine's evaluator returned, names with or without a prefix.

    Returns:
        ``measure``: ``'accuracy'``; ``'abs_rel'`` (lower is better) where the evaluator has a
        :class:`mmgap.GroupDepth`; ``'f1'`` where it has a :class:`mmgap.MacroF1`, whose classes are
        then the groups and whose macro F1 is the mean. In it ``worst_group``, ``mean``,
        ``adjusted`` and ``groups``; accuracies as fractions in [0, 1]; None where the evaluator
        knows no groups. And all ``metrics`` that are a number, None for NaN and Inf.
    """
    report: dict[str, Any] = dict(worst_group=None, mean=None, adjusted=None, groups={})
    last = {name.rpartition('/')[2] for name in metrics}
    if 'worst_group' in last:  # classes are groups only where there are no others
        last.discard('f1_macro')
    report['measure'] = next((m for m, key in MEASURES.items() if key in last), 'accuracy')
    # Before the name of a group or class, which may have slashes too.
    total, kind = ('f1_macro', 'f1') if report['measure'] == 'f1' else ('worst_group', 'group')
    ends = [name for name in metrics if name.rpartition('/')[2] == total]
    starts = [f'{name.removesuffix(total)}{kind}/' for name in ends]
    plain = {}
    for name, value in metrics.items():
        try:
            value = float(value)
        except (TypeError, ValueError, RuntimeError):  # a list for each class, a confusion matrix
            continue
        plain[name] = value if math.isfinite(value) else None
        group = next((name.removeprefix(start) for start in starts if name.startswith(start)), None)
        part = name.rpartition('/')[2]
        if group is not None:
            report['groups'][group] = plain[name]
        elif part in ('worst_group', 'mean', 'adjusted'):
            report[part] = plain[name]
        elif part == 'f1_macro' and report['measure'] == 'f1':
            report['mean'] = plain[name]
    if report['measure'] == 'f1':
        report['worst_group'] = min(report['groups'].values())
    return dict(report, metrics=plain)


def round_report(
    pool: SamplePool, round_index: int, critic: Critic | None = None, limit: int = 200
) -> dict[str, Any]:
    """Counts and, where a critic can tell, agreement and diversity of a round.

    Args:
        pool: The pool.
        round_index: The round.
        critic: The critic that looked at the images.
        limit: The diversity is that of the first so many kept images.

    Returns:
        ``images`` (kept), ``dropped`` (by the critic), ``unselected`` (less useful than others, or
        dropped), ``agreement`` (mean over all drawn, None without a critic),
        ``diversity`` (mean cosine distance of two images in CLIP's space, None without CLIP), and
        network ``evaluations`` of the images, those to aim by and dropped ones included.
    """
    drawn = [sample for sample in pool.samples if sample.round == round_index]
    kept = [sample for sample in drawn if sample.kept]
    agreements = [sample.agreement for sample in drawn if sample.agreement is not None]
    spread = None
    if isinstance(critic, ClipCritic) and len(kept) > 1:
        arrays = [np.array(Image.open(pool.path(sample))) for sample in kept[:limit]]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        spread = diversity(critic.model, images)
    return dict(
        images=len(kept),
        dropped=sum(not sample.kept and sample.useful_by is None for sample in drawn),
        unselected=sum(not sample.kept and sample.useful_by is not None for sample in drawn),
        agreement=float(np.mean(agreements)) if agreements else None,
        diversity=spread,
        evaluations=drawing_evaluations(pool, round_index),
    )


def drawing_evaluations(pool: SamplePool, round_index: int) -> float:
    """Network evaluations that a round's images cost; those of older versions count nothing."""
    aim = pool.folder / f'aim_{round_index}.json'
    aiming = json.loads(aim.read_text()).get('evaluations', 0) if aim.exists() else 0
    drawn = [s.evaluations or 0 for s in pool.samples if s.round == round_index]
    return round(aiming + sum(drawn), 6)


def effect(prompt: Mapping[str, Any]) -> str:
    """What a prompt's search changed, from its summary, as text."""
    if prompt['target_loss_after'] is None:  # search.holdout is 0
        return 'not evaluated'
    return (
        f'target loss {prompt["target_loss_before"]:.2f} -> {prompt["target_loss_after"]:.2f}, '
        f'accuracy {prompt["accuracy_before"]:.2f} -> {prompt["accuracy_after"]:.2f}'
    )


def environment(metainfo: Mapping[str, Any]) -> dict[str, str]:
    """Versions of what decides a result.

    Args:
        metainfo: The training data's, which may carry a ``world_version``.
    """
    from importlib.metadata import PackageNotFoundError, version

    from mmgap import __version__

    versions = dict(mmgap=__version__)
    for name in ('torch', 'diffusers', 'transformers', 'numpy'):
        versions[name] = version(name)
    for name in ('mmengine', 'mmpretrain', 'mmsegmentation', 'mmcv', 'mmcv-lite'):
        for package in (name, f'onedl-{name}'):
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
    if 'world_version' in metainfo:
        versions['toyworld'] = str(metainfo['world_version'])
    return versions


def run_summary(
    state: Mapping[str, Any],
    seconds: Mapping[str, float],
    after: Mapping[str, Any] | None,
    missed: Mapping[str, Any] | None,
    seed: int,
    metainfo: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        state: That of GAPHook or InjectionHook.
        seconds: ``total`` and those of its parts that are no training.
        after: Group report of the trained model; None while it is trained.
        missed: Rounds that were never run; None if there are none.
        seed: Seed of every draw.
        metainfo: The training data's.
        about: What ran: names of ``config`` and ``model``, ``settings`` as plain data, and
            whether it is ``finished``.
    """
    elsewhere = sum(value for name, value in seconds.items() if name != 'total')
    training = seconds['total'] - elsewhere
    return dict(
        about,
        before=state.get('before'),
        after=after,
        rounds=state.get('rounds', []),
        images=state['images'],
        injection=state['injection'] and dict(state['injection'], refit=state['refit']),
        stopped=state.get('stopped'),
        rounds_missed=missed,
        seconds=dict(seconds, training=training),
        seed=seed,
        method=state.get('method'),
        versions=environment(metainfo),
    )


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as text: accuracy before and after, prompts, images, seconds."""
    before, after = summary['before'] or {}, summary['after'] or {}
    measure = (after or before).get('measure', 'accuracy')
    lines = ['', f'{TITLES[measure]:<32}{"before":>9}{"after":>9}']
    names = {**before.get('groups', {}), **after.get('groups', {})}
    for name in names:
        pair = (before.get('groups', {}).get(name), after.get('groups', {}).get(name))
        lines.append(_row(name, *pair))
    for name in ('worst_group', 'mean', *(['adjusted'] if measure == 'accuracy' else [])):
        lines.append(_row(name.replace('_', ' '), before.get(name), after.get(name)))
    if not names:
        metrics = {**before.get('metrics', {}), **after.get('metrics', {})}
        for name in metrics:
            pair = (before.get('metrics', {}).get(name), after.get('metrics', {}).get(name))
            lines.append(_row(name, *pair))
    for round_index, round_ in enumerate(summary['rounds']):
        seconds = round_['seconds']
        lines.append(
            f'round {round_index}: {len(round_["prompts"])} prompts, {round_["images"]} images'
            f'{_of_the_critic(round_)}; search '
            f'{seconds["search"]:.1f} s, synthesis {seconds["synthesis"]:.1f} s'
            f'{_cost(round_)}'
        )
        evaluated = [p for p in round_['prompts'] if p['target_loss_after'] is not None]
        for prompt in evaluated:
            lines.append(f'  {prompt["id"]:<26}{effect(prompt)}')
            if prompt.get('alarm'):
                lines.append(f'    alarm: {prompt["alarm"]}; kept step {prompt["kept_step"]}')
    if summary.get('injection'):
        lines.append(f'injection: {summary["injection"]["mode"]}. {summary["injection"]["why"]}')
        if summary['injection']['refit']:
            lines.append(
                '  refit: {images} images, {steps} steps, loss {loss:.3f}'.format(
                    **summary['injection']['refit']
                )
            )
    if summary.get('rounds_missed'):
        lines.append(f'WARNING: {summary["rounds_missed"]["why"]}')
    stages = ', '.join(f'{name} {value:.1f}' for name, value in summary['seconds'].items())
    lines.append(f'seconds: {stages}')
    return '\n'.join(lines)


def _cost(round_: Mapping[str, Any]) -> str:
    searched = [prompt.get('evaluations') for prompt in round_['prompts']]
    drawn = round_.get('evaluations')
    if None in searched or not (drawn and round_['images']):
        return ''
    return f'; {(sum(searched) + drawn) / round_["images"]:.0f} network evaluations an image'


def _of_the_critic(round_: Mapping[str, Any]) -> str:
    facts = [f'{round_[name]} {name}' for name in ('dropped', 'unselected') if round_.get(name)]
    for name in ('agreement', 'diversity'):
        if round_.get(name) is not None:
            facts.append(f'{name} {round_[name]:.2f}')
    return f' ({", ".join(facts)})' if facts else ''


def _row(name: str, before: float | None, after: float | None) -> str:
    before_text = '-' if before is None else f'{before:.3f}'
    after_text = '-' if after is None else f'{after:.3f}'
    return f'  {name:<30}{before_text:>9}{after_text:>9}'
