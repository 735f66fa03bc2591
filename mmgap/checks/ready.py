# SPDX-License-Identifier: Apache-2.0
"""Look whether a config is ready to run, before the hours begin.

Finds the data and counts it by group, looks at masks or depth maps, loads all weights, sends one
image through search and synthesis, and says from that how much memory and time the hook will take.
``--tiny`` takes packaged tiny weights (a Stable Diffusion 1.x of 64 pixels) instead of the
config's, to look at data, masks and the way through search and synthesis without them; guidance,
critic and starts are then left out. Ends with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from mmgap.configs import Changes, gap_hooks, name_of, read_config, set_scope
from mmgap.datasets import share_classes
from mmgap.datasets.masked_folders import left_out_note
from mmgap.injection import rate_note
from mmgap.loop import Loop
from mmgap.loop.guards import check_classes
from mmgap.machine import memory, peak, reset_peak
from mmgap.search.progress import PromptProgress
from mmgap.search.step import SearchStep
from mmgap.sources import ImageSpec
from mmgap.targets import TargetModel
from mmgap.targets.load import fitting_share
from mmgap.weights import is_pretrained, without_pretrained
from mmgap.wrappers import innermost

LOOKED_AT = 16  # masks or depth maps
MOST_SECONDS = 60  # that a whole step may take to be looked at
MOST_KEPT = 0.75  # median share of the image that most objects stay below


class Checklist:
    """Does one thing after the other, and says of each whether it went well."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, look: Callable[[], Any]) -> Any:
        """What ``look`` returns; None if something is wrong. Its last part is for the reader."""
        try:
            result, detail = look()
        except Exception as error:  # whatever it is, a run would end in it too
            self.failed += 1
            detail = error.args[0] if isinstance(error, KeyError) and error.args else error
            print(f'WRONG  {name}: {type(error).__name__}: {detail}', flush=True)
            return None
        print(f'ok     {name}: {detail}', flush=True)
        return result


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('--checkpoint', help="weights of the model instead of the config's")
    parser.add_argument('--tiny', action='store_true', help='packaged tiny weights')
    parser.add_argument('--cfg-options', nargs='+', action=Changes, help='key=value …')
    return parser.parse_args()


def make_tiny(config: Config) -> None:
    """Put packaged weights in the place of the generator's, and none in that of the model's."""
    for hook in gap_hooks(config):
        generator = hook.generator
        # Its tokenizer knows few words, so sentences are left out.
        generator.update(model='mmgap://toybirds-sd', size=64, negative_prompt='', lora=None)
        if 'controlnet' in generator:
            generator.controlnet = 'mmgap://toybirds-controlnet'
        hook.critic = False
        if hook.get('feedback'):
            terms = [term for term in hook.feedback if 'Guidance' not in name_of(term['type'])]
            depth = 'controlnet' in generator
            plain = 'mmgap.DepthAdversarialLoss' if depth else 'mmgap.AdversarialLoss'
            settings = {} if depth else dict(mode='uniform')
            hook.feedback = terms or [dict(type=plain, **settings)]
            for term in hook.feedback:  # the guidance that it waited for is gone
                term.pop('start', None)
        starts = dict(init='vocabulary', template='{}', aim=0.0, alarm=None)
        hook.search = dict(hook.get('search') or {}, **starts)
    config.model = without_pretrained(config.model)
    config.load_from = None


def devices(config: Config) -> tuple[None, str]:
    """Where it would run.

    Raises:
        ValueError: If a part asks for a GPU and there is none.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return None, f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB'
    asking = [path for path, value in leaves(config.to_dict()) if needs_gpu(path, value)]
    if asking:
        raise ValueError(
            f'{asking} ask for a GPU, and this machine has none that PyTorch sees; take them out, '
            "or set devices to 'cpu' and optim_wrapper.type to 'OptimWrapper'"
        )
    return None, 'no GPU: all of it runs on the CPU'


def needs_gpu(path: str, value: Any) -> bool:
    if path == 'optim_wrapper.type':
        return name_of(value) == 'AmpOptimWrapper'
    return path.endswith('device') and str(value).startswith(('cuda', 'gpu'))


def leaves(settings: Any, path: str = '') -> list[tuple[str, Any]]:
    """All values of a config with their paths."""
    parts: Iterable[tuple[Any, Any]]
    if isinstance(settings, Mapping):
        parts = settings.items()
    elif isinstance(settings, (list, tuple)):
        parts = enumerate(settings)
    else:
        return [(path, settings)]
    return [leaf for key, part in parts for leaf in leaves(part, f'{path}.{key}'.lstrip('.'))]


def build_loop(config: Config) -> tuple[Loop, str]:
    """The loop, of which the generator is loaded now."""
    loop = Loop.from_config(config)
    return loop, repr(loop.generator)


def count(settings: Mapping[str, Any], needs_all: bool) -> tuple[Any, str]:
    """The dataset of a config, and how many samples of each group or class it has.

    Raises:
        ValueError: If an image does not exist, or ``needs_all`` and a class has none.
    """
    dataset = DATASETS.build(settings)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    missing = [info['img_path'] for info in infos[:: max(1, len(infos) // 50)] if is_gone(info)]
    if missing:
        raise ValueError(f'image {missing[0]} does not exist; look at data_root and data_prefix')
    classes, groups = dataset.metainfo.get('classes'), dataset.metainfo.get('groups')
    labels = Counter(info.get('gt_label') for info in infos)
    empty = [name for number, name in enumerate(classes or ()) if not labels[number]]
    if needs_all and empty and None not in labels:
        raise ValueError(f'there are no images of class {", ".join(empty)}')
    counts, names = Counter(info.get('group') for info in infos), groups
    if not groups or None in counts:
        counts, names = labels, classes
    detail = f'{len(infos)} samples'
    if names and None not in counts:
        counted = (f'{name} {counts[number]}' for number, name in enumerate(names))
        detail += f': {", ".join(counted)}'
    others = [name for part in innermost(dataset) for name in getattr(part, 'left_out', ())]
    return dataset, f'{detail}. NOTE: {left_out_note(others)}' if others else detail


def compare_splits(sources: Any, others: Mapping[str, Any]) -> tuple[Any, str]:
    """See that labels mean the same in all splits, and whether a source is evaluated on.

    Raises:
        ValueError: If the classes differ.
    """
    check_classes(sources, [dataset for dataset in others.values() if dataset is not None])
    own = [sources.dataset.get_data_info(i)['img_path'] for i in range(len(sources))]
    detail = 'no source is among the others'
    for name, dataset in others.items():
        if dataset is not None:
            paths = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
            if paths & set(own):
                detail = f'NOTE: {len(paths & set(own))} sources are also {name} data'
    return sources, detail


def is_gone(info: Mapping[str, Any]) -> bool:
    return '://' not in info['img_path'] and not os.path.exists(info['img_path'])


def look_at_sources(sources: Any) -> tuple[Any, str]:
    """Read a few masks or depth maps."""
    step = max(1, len(sources) // LOOKED_AT)
    condition = sources.load(list(range(0, len(sources), step))[:LOOKED_AT])
    if condition.depth is not None:
        known = condition.depth[condition.depth > 0]
        share = condition.masks.float().mean()
        return sources, (
            f'depth of {len(condition)} sources from {known.min():.2f} to {known.max():.2f} m, '
            f'median {known.median():.2f} m, known in {share:.0%} of the pixels'
        )
    shares = condition.masks.float().mean(dim=(1, 2, 3))
    detail = (
        f'masks of {len(condition)} sources keep {shares.min():.0%} to {shares.max():.0%} of the '
        f'image, median {shares.median():.0%}'
    )
    masked = shares[shares < 1]  # without a mask all of it is kept
    if len(masked) and masked.median() > MOST_KEPT:
        detail += (
            '. NOTE: that is much. Are they inverted? The object must be bright, all else dark'
        )
    return sources, detail


def load_target(loop: Loop, checkpoint: str | None) -> tuple[Any, str]:
    """The model with its weights.

    Raises:
        ValueError: If pretrained weights are of another architecture.
    """
    target = loop.target(checkpoint)
    loaded = [f'weights from {checkpoint}'] if checkpoint else []
    for name, module in target.model.named_modules():
        settings: Any = None if checkpoint else getattr(module, 'init_cfg', None)
        if not is_pretrained(settings):
            continue
        share = fitting_share(module, settings)
        # MMEngine only warns where weights do not fit, and trains on from a random start.
        if share < 0.9:
            raise ValueError(
                f'only {share:.0%} of the weights of {name or "the model"} are in '
                f'{settings["checkpoint"]!r}: they are of another architecture'
            )
        loaded.append(f'{name or "model"} {share:.0%} from {settings["checkpoint"]}')
    number = sum(p.numel() for p in target.model.parameters()) / 1e6
    kind = type(target.model).__name__
    return target, f'{kind}, {number:.1f} M parameters; {", ".join(loaded) or "no weights loaded"}'


def look_at_schedule(config: Config, loop: Loop, target: TargetModel) -> tuple[None, str]:
    """Whether the learning rate falls before images come, where a refit needs that."""
    if config.get('param_scheduler'):
        return None, 'the learning rate has a schedule'
    note = rate_note(target.model, loop.settings.injection, loop.sources.label_type, rate=1.0)
    detail = 'the learning rate is constant'
    return None, detail if note is None else f'{detail}. NOTE: {note}'


def one_test_sample(config: Config, target: Any) -> tuple[None, str]:
    """Send a test sample through the model and the metrics, which the hook asks before a round."""
    loader = config.test_dataloader
    dataset = DATASETS.build(loader.dataset)
    settings = config.test_evaluator
    if isinstance(settings, Mapping):
        settings = settings.get('metrics', [settings])
    evaluator = Evaluator(settings)
    evaluator.dataset_meta = dataset.metainfo
    batch = pseudo_collate([dataset[0]])
    with torch.no_grad(), target.frozen():
        outputs = target.model.test_step(batch)
    evaluator.process(data_samples=outputs, data_batch=batch)
    return None, f'went through {names_of(evaluator.metrics)}'


def names_of(parts: Sequence[Any]) -> str:
    return ', '.join(type(part).__name__ for part in parts if part is not None) or 'none'


def set_up(loop: Loop, target: Any) -> tuple[Any, str]:
    """The search and the prompts that it starts from."""
    search = loop.prompt_search(target)
    loop.initial_prompts(search, draw=False)
    return search, 'can be set up'


def one_step(loop: Loop, target: Any, tiny: bool) -> tuple[None, str]:
    """A step of the search with one image and with two, and what follows from them.

    Raises:
        ValueError: If the batch of the config would not fit into memory.
    """
    settings = loop.settings.search
    prompts = settings.prompts_per_class * len(loop.sources.classes)
    images_per_step = settings.images_per_prompt * prompts
    for term in loop.feedback:
        term.start, term.end = 0, None  # some begin late; all together take the most
    measured = [measure(loop, target, images) for images in (1, 1, 2)]
    (_, first), (seconds, _), (two, second) = measured
    each = min(seconds, two / 2)
    if tiny:
        return None, 'one image went through generator, model and back; tiny weights tell no times'
    batch = min(settings.batch_size, images_per_step)
    free, needed = memory(), first + max(0, second - first) * (batch - 1)
    if second and needed > free:
        fits = max(1, int((free - first) / max(1, second - first)) + 1)
        raise ValueError(
            f'a step with search.batch_size={batch} would take about {needed / 2**30:.1f} GiB, and '
            f'there are {free / 2**30:.1f} GiB; set search.batch_size={min(fits, batch - 1) or 1}, '
            "or gradient=dict(checkpoint='blocks') in the generator"
        )
    if each * batch < MOST_SECONDS:  # together they take less time each, on a GPU above all
        taken, needed = measure(loop, target, batch)
        each = taken / batch
    rounds = duration(each * settings.steps * images_per_step)
    last = f'a round of {prompts} prompts takes at most {rounds} to search'
    if not second:
        return None, f'{each:.2f} s an image; {last}. This system does not tell the memory it takes'
    return None, (
        f'{each:.2f} s an image and about {needed / 2**30:.1f} GiB with search.batch_size={batch} '
        f'(of {free / 2**30:.1f} GiB); {last}'
    )


def measure(loop: Loop, target: Any, images: int) -> tuple[float, int]:
    """Seconds and peak bytes of a step with so many images; 0 bytes where nothing tells them.

    Each image has a prompt of its own, as in the worst case.
    """
    step = SearchStep(
        loop.generator,
        target,
        loop.feedback,
        loop.sources,
        loop.settings.search.num_inference_steps,
        batch_size=images,
    )
    random_prompt = loop.generator.prompts.random_prompt
    prompts = [random_prompt(4, seed=i, id=f'check-{i}') for i in range(images)]
    progress = [PromptProgress(prompt, prompt.embeddings.detach().clone()) for prompt in prompts]
    reset_peak()
    began = time.monotonic()
    with target.frozen():
        scores = step(progress, [ImageSpec(i % len(loop.sources), i, i) for i in range(images)])
    if not all(score.gradient.abs().sum() > 0 for score in scores):
        raise ValueError('no gradient reaches the prompt; look at the terms of feedback')
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - began, peak()


def duration(seconds: float) -> str:
    return f'{seconds / 3600:.1f} h' if seconds > 5400 else f'{seconds / 60:.1f} min'


def one_image(loop: Loop, target: TargetModel | None, tiny: bool) -> tuple[None, str]:
    """Draw an image as the synthesis does, and a batch of them to see what they take.

    Raises:
        FloatingPointError: If it has pixels that are NaN.
    """
    settings, generator = loop.settings.synthesis, loop.generator
    synthesizer, drawn = loop.synthesizer(), loop.settings.budget * settings.overdraw
    prompt = generator.prompts.random_prompt(4, seed=0, id='check')
    feedback = loop.feedback if target is not None else ()
    each = 0.0
    for images in (1, 1, min(settings.batch_size, drawn)):  # the first one warms up
        if each * images > MOST_SECONDS:
            break
        began = time.monotonic()
        synthesizer.try_out([prompt], target, feedback, images)
        each = (time.monotonic() - began) / images
    size = f'{generator.size[1]}x{generator.size[0]}'
    if tiny:
        return None, size
    kept = f', of which {loop.settings.budget} are kept,' * (settings.overdraw > 1)
    return None, f'{size} in {each:.2f} s; {drawn} images{kept} take {duration(each * drawn)}'


def main() -> None:
    """Do all checks that can be done."""
    args = parse_args()
    config = read_config(args.config, args.cfg_options)
    MMLogger.get_instance('mmgap', log_level='ERROR')
    if args.tiny:
        make_tiny(config)
    set_scope(config)
    check = Checklist()
    check('device', lambda: devices(config))
    share_classes(config)
    found = {}
    for name in ('train', 'val', 'test'):
        loader = config.get(f'{name}_dataloader')
        if loader is not None:
            found[name] = check(f'{name} data', partial(count, loader.dataset, name == 'train'))
    loop = check('generator', lambda: build_loop(config))
    if loop is not None:
        check('sources', lambda: look_at_sources(loop.sources))
        others = {name: found.get(name) for name in ('val', 'test')}
        check('splits', lambda: compare_splits(loop.sources, others))
        checkpoint = args.checkpoint or config.get('load_from')
        target = check('model', lambda: load_target(loop, checkpoint))
        if target:
            check('schedule', lambda: look_at_schedule(config, loop, target))
        if target and config.get('test_dataloader') is not None:
            check('test sample', lambda: one_test_sample(config, target))
        terms = check('feedback', lambda: (loop.feedback, names_of(loop.feedback)))
        critic = check('critic', lambda: (True, names_of([loop.critic])))
        if target and terms and critic:
            if check('search', lambda: set_up(loop, target)):
                check('search step', lambda: one_step(loop, target, args.tiny))
        if critic and check('synthesis', lambda: (loop.synthesizer(), 'can be set up')):
            check('image', lambda: one_image(loop, target or None, args.tiny))
    if check.failed:
        raise SystemExit(f'{check.failed} things to mend')
    print('ready')


if __name__ == '__main__':
    main()
