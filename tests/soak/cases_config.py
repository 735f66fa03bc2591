# SPDX-License-Identifier: Apache-2.0
"""Configs and settings that mean nothing."""

from __future__ import annotations

import re
from typing import Any

from tests.soak.stage import Stage, case


@case('a config name with a letter too few', 'train')
def config_unknown(stage: Stage) -> None:
    stage.refuses('train', 'gap_resnet18_toybird', says=['gap_resnet18_toybird', 'mmgap configs'])


@case('a folder as the config', 'check')
def config_is_a_folder(stage: Stage) -> None:
    stage.refuses('check', stage.folder, says=[stage.folder, 'mmgap configs'])


@case('a text file as the config', 'check')
def config_is_text(stage: Stage) -> None:
    path = stage.folder / 'notes.txt'
    path.write_text('hello')
    stage.refuses('check', path, says=[path, 'py/yml'])


@case('a config with a syntax error', 'train')
def config_syntax(stage: Stage) -> None:
    path = stage.config(text='train_cfg = dict(by_epoch=True,,)\n')
    stage.refuses('train', path, says=[path, 'line', 'train_cfg = dict(by_epoch=True,,)'])


@case('a config that uses a name it does not have', 'train')
def config_name_error(stage: Stage) -> None:
    path = stage.config(text='work_dir = folder_of_work\n')
    stage.refuses('train', path, says=[path, 'folder_of_work'])


@case('a config that imports what is not installed', 'search')
def config_import(stage: Stage) -> None:
    path = stage.config(custom_imports__imports=['mmgap', 'my_birds'])
    stage.refuses('search', path, says=['my_birds'])


@case('a _base_ that does not exist', 'train')
def config_base(stage: Stage) -> None:
    path = stage.folder / 'config.py'
    path.write_text("_base_ = './nothing.py'\n")
    stage.refuses('train', path, says=['nothing.py', 'config'])


@case('a config without a GAPHook', 'search')
def search_without_hook(stage: Stage) -> None:
    path = stage.config(text='custom_hooks = []\n')
    stage.refuses('search', path, says=['GAPHook', 'custom_hooks'])


@case('a config without a GAPHook', 'generate')
def generate_without_hook(stage: Stage) -> None:
    path = stage.config(text='custom_hooks = []\n')
    options = ('--text', 'a', '--num', 1, '--out', stage.folder / 'pool')
    stage.refuses('generate', path, *options, says=['GAPHook', 'custom_hooks'])


@case('a config without a GAPHook', 'check')
def check_without_hook(stage: Stage) -> None:
    stage.checks_wrong(stage.config(text='custom_hooks = []\n'), says=['GAPHook', 'custom_hooks'])


@case('two GAPHooks', 'train')
def two_hooks(stage: Stage) -> None:
    path = stage.config(text='custom_hooks = custom_hooks * 2\n')
    stage.refuses('train', path, says=['GAPHook', '2'])


@case('two GAPHooks', 'search')
def two_hooks_search(stage: Stage) -> None:
    path = stage.config(text='custom_hooks = custom_hooks * 2\n')
    stage.refuses('search', path, says=['GAPHook', '2'])


@case('a GAPHook and an InjectionHook', 'train')
def hooks_of_two_kinds(stage: Stage) -> None:
    path = stage.config(text="custom_hooks += [dict(type='mmgap.InjectionHook', pool='pool')]\n")
    stage.refuses('train', path, says=['GAPHook', 'InjectionHook', 'leave one'])


@case('a GAPHook and an InjectionHook', 'check')
def check_hooks_of_two_kinds(stage: Stage) -> None:
    path = stage.config(text="custom_hooks += [dict(type='mmgap.InjectionHook', pool='pool')]\n")
    stage.checks_wrong(path, says=['GAPHook', 'InjectionHook', 'leave one'])


# Settings of the hook by their path, values that they cannot have, and what must be said of them;
# by default the setting's name and the value.
NAN = float('nan')
SETTINGS: list[tuple[str, Any, tuple[str, ...]]] = [
    ('search.steps', 'many', ()),
    ('search.steps', -1, ()),
    ('search.steps', 1.5, ()),
    ('search.batch_size', 0, ()),
    ('search.holdout', None, ()),
    ('search.tokens', '5', ()),
    ('search.tokens', 0, ()),
    ('search.rate', NAN, ()),
    ('search.scope', 'klass', ("'class'",)),
    ('search.init', 'no/such/prompt.safetensors', ('no/such/prompt.safetensors',)),
    ('search.template', 'in the forest', ()),
    ('search.stepz', 3, ('stepz', 'steps')),
    ('search.optim_wrapper.optimizer.type', 'Adamm', ('Adamm',)),
    ('search.param_scheduler', [dict(type='CosineLR')], ('CosineLR',)),
    ('synthesis.num_inference_steps', '15', ()),
    ('synthesis.overdraw', True, ()),
    ('synthesis.aim', 2.0, ()),
    ('synthesis.crossed', True, ('crossed', 'cross')),
    ('synthesis.keep', dict(by='luck'), ('by', 'luck')),
    ('injection.mode', 'mixed', ("'mixed'", 'mix')),
    ('injection.ratio', NAN, ()),
    ('injection.ratio', -0.5, ()),
    ('injection.rate', 3, ('rate', 'ratio')),
    ('budget', 0, ('budget=0',)),
    ('budget', '8', ()),
    ('start', -1, ('start=-1',)),
    ('start', 50, ('start', '50')),
    ('interval', 0, ('interval=0',)),
    ('max_seconds', '1h', ()),
    ('plateau', 2, ('plateau=2', 'val_dataloader')),
    ('budgets', 8, ('budgets', 'budget')),
    ('seed', 'lucky', ()),
    ('critic', dict(type='mmgap.ClipCritik'), ('ClipCritik',)),
    ('feedback', [dict(type='mmgap.AdversarialLos', mode='flip')], ('AdversarialLos',)),
    ('feedback', [dict(type='mmgap.AdversarialLoss', start='late')], ('start', 'late')),
    ('feedback', [dict(type='mmgap.AdversarialLoss', mode='flop')], ('mode', 'flop', 'flip')),
    ('feedback', [dict(type='mmgap.AdversarialLoss', weight=NAN)], ('weight', 'nan')),
    ('feedback', [dict(type='mmgap.AdversarialLoss', weigth=1.0)], ('weigth', 'AdversarialLoss')),
    ('feedback', dict(type='mmgap.AdversarialLoss'), ('feedback', 'list')),
    ('feedback', [], ('feedback',)),
    ('generator.scheduler', dict(type='DDIMSchedular'), ('DDIMSchedular',)),
    ('generator.type', 'mmgap.InpaintGenerator', ('InpaintGenerator',)),
    ('generator.strength', 1.5, ()),
    ('generator.strenght', 0.5, ('strenght',)),
    ('generator.guidance_scale', 'strong', ()),
    ('generator.device', 'cuda:7', ()),
    ('generator.size', -8, ()),
    ('generator.autocast', 'float8', ()),
]


def add_setting(path: str, value: Any, says: tuple[str, ...]) -> None:
    """A case of one setting that has a value which it cannot have."""
    words = says or (path.rsplit('.', 1)[-1], value if isinstance(value, str) else repr(value))
    name = re.sub(r'\W+', '_', f'{path}_{value}').strip('_')[:60]

    @case(f'GAPHook: {path}={value!r}', 'train', name)
    def act(stage: Stage) -> None:
        config = stage.config(**{f'hook__{path.replace(".", "__")}': value})
        stage.refuses('train', config, says=words)


for path, value, says in SETTINGS:
    add_setting(path, value, says)
