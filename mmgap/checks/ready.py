# SPDX-License-Identifier: Apache-2.0
"""Look whether a config is ready to run, before the hours begin.

Finds the data and counts it by group, looks at masks or depth maps, loads all weights, sends one
image through search and synthesis, and says from that how much memory and time the hook will take.
``--tiny`` takes packaged tiny weights (a Stable Diffusion 1.x of 64 pixels) instead of the
config's, to look at data, masks and the way through search and synthesis without them; guidance,
critic and starts are then left out. A config without a GAPHook that takes a pool as it is has the
pool looked at in their place. Ends with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmgap.checks.looks import (
    compare_splits,
    count,
    load_target,
    load_weights,
    look_at_injection,
    look_at_pool,
    look_at_refit,
    look_at_schedule,
    look_at_sources,
    names_of,
    one_test_sample,
)
from mmgap.checks.trials import one_image, one_step, set_up
from mmgap.configs import Changes, gap_hooks, injection_hooks, name_of, read_config, set_scope
from mmgap.datasets import share_classes
from mmgap.injection import label_type_of
from mmgap.loop import Loop
from mmgap.weights import without_pretrained


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


def takes_pool(config: Config) -> bool:
    """Whether training takes a pool that there is already, and makes none."""
    if gap_hooks(config):
        return False
    named = leaves((config.get('train_dataloader') or {}).get('dataset'))
    kinds = [name_of(value) for path, value in named if path.split('.')[-1] == 'type']
    return bool(injection_hooks(config)) or 'SyntheticMixDataset' in kinds


def check_pool(check: Checklist, config: Config, data: Any, checkpoint: str | None) -> None:
    """Do the checks of a config that takes a pool as it is."""
    hook = check('injection', lambda: look_at_injection(config))
    images = None
    if hook and data is not None:
        images = check('pool', lambda: look_at_pool(data, hook))
    model = check('model', lambda: load_weights(config, checkpoint))
    if model and images is not None:
        injection, label_type = hook.injection, label_type_of(images)
        if injection.mode == 'refit':
            check('refit', lambda: look_at_refit(model, injection, label_type))
        check('schedule', lambda: look_at_schedule(config, injection, label_type, model))
    if model and config.get('test_dataloader') is not None:
        check('test sample', lambda: one_test_sample(config, model))


def check_loop(
    check: Checklist, config: Config, found: Mapping[str, Any], args: argparse.Namespace
) -> None:
    """Do the checks of a config with a GAPHook.

    Args:
        check: Does them.
        config: The config.
        found: Its datasets by split.
        args: As they were typed.
    """
    loop = check('generator', lambda: build_loop(config))
    if loop is not None:
        check('sources', lambda: look_at_sources(loop.sources))
        others = {name: found.get(name) for name in ('val', 'test')}
        check('splits', lambda: compare_splits(loop.sources, others))
        target = check('model', lambda: load_target(loop, args.checkpoint))
        if target:
            injection, model = loop.settings.injection, target.model
            label_type = loop.sources.label_type
            check('schedule', lambda: look_at_schedule(config, injection, label_type, model))
        if target and config.get('test_dataloader') is not None:
            check('test sample', lambda: one_test_sample(config, target.model))
        terms = check('feedback', lambda: (loop.feedback, names_of(loop.feedback)))
        critic = check('critic', lambda: (True, names_of([loop.critic])))
        if target and terms and critic:
            if check('search', lambda: set_up(loop, target)):
                check('search step', lambda: one_step(loop, target, args.tiny))
        if critic and check('synthesis', lambda: (loop.synthesizer(), 'can be set up')):
            check('image', lambda: one_image(loop, target or None, args.tiny))


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
    if takes_pool(config):
        check_pool(check, config, found.get('train'), args.checkpoint)
    else:
        check_loop(check, config, found, args)
    if check.failed:
        raise SystemExit(f'{check.failed} things to mend')
    print('ready')


if __name__ == '__main__':
    main()
