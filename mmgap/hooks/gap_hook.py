# SPDX-License-Identifier: Apache-2.0
"""GAPHook: when to search, draw and refresh. Nothing else in mmgap knows the Runner."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from functools import partial
from operator import gt, lt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner, TestLoop

from mmgap.compat import (
    allow_checkpoint_history,
    allow_nondeterministic_resize,
    repair_last_checkpoint,
    replace_dataset,
    restart_infinite_iterator,
    restart_workers,
)
from mmgap.datasets.synthetic_mix import SyntheticMixDataset, batch_of, mixes_in
from mmgap.distributed import broadcast_object, rank0_buffers
from mmgap.feedback import Critic
from mmgap.files import write_bytes, write_json
from mmgap.hooks.components import (
    build_critic,
    build_search,
    build_sources,
    build_synthesizer,
    build_target,
    check_classes,
    prepare_feedback,
    split_search,
)
from mmgap.hooks.summary import environment, group_report, summary_table
from mmgap.machine import memory, release_memory, training_memory
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank
from mmgap.registry import HOOKS, TASK_UTILS
from mmgap.seeds import derive_seed, preserved_rng
from mmgap.sources import SourceSet
from mmgap.synthesis import round_report
from mmgap.synthesis.contact_sheet import write_contact_sheet


@HOOKS.register_module()
class GAPHook(Hook):
    """Close the loop: search prompts against the model in training, draw, mix in, train on.

    Add it to ``custom_hooks`` of any MMPretrain config whose training data have masks, or of any
    config of MMSegmentation's depth models. If the
    config names no :class:`mmgap.SyntheticMixDataset`, the hook wraps the training data in one
    that replaces: the epoch stays as long as it was.

    Everything random in training (model, augmentation, mixing) is seeded anew from (seed, epoch)
    or (seed, iteration), so that a run that was killed and resumed ends as one that was not.

    Before training, one image goes through search and synthesis, to find what does not fit. On a
    GPU the generator waits on the CPU while the model trains, unless both fit. After the search of
    a round is complete, a resumed run may have another ``generator.scheduler``, ``generator.eta``,
    ``search.num_inference_steps`` and ``synthesis``: it goes on with the prompts that were found.

    What it leaves under the work directory is described in README.

    Args:
        generator: Config of the generator, e.g. ``dict(type='mmgap.InpaintingGenerator', …)``.
        feedback: Configs of the feedback's losses.
        search: Arguments of :class:`~mmgap.search.PromptSearch` and
            :func:`~mmgap.search.initial_prompts`; ``grow`` and ``aim`` are explained at
            :func:`~mmgap.hooks.components.build_search`.
        synthesis: Arguments of :class:`~mmgap.synthesis.Synthesizer`.
        critic: Config of a critic that tells whether images are still what their labels say,
            e.g. ``dict(type='mmgap.ClipCritic', …)``. None for the generator's own, which only
            :class:`~mmgap.generators.ImageToImageGenerator` has; False for no critic.
        target: Arguments of :class:`~mmgap.feedback.TargetModel`; read from the test pipeline by
            default.
        ratio: Synthetic share of the training samples when the hook wraps the data itself.
        start: Epochs (or iterations, for iteration-based loops) of training before the first
            round.
        rounds: Number of rounds.
        interval: Epochs (or iterations) between two rounds.
        budget: Images of all rounds together.
        max_seconds: No further round begins once searches and syntheses have taken so long.
        plateau: No further round begins once the validation's worst group has not become better for
            so many rounds. Needs a val_dataloader and :class:`mmgap.GroupAccuracy` or
            :class:`mmgap.GroupDepth`.
        seed: Seed of every draw; the Runner's by default.

    Raises:
        ValueError: If a number is out of range or the last round would start after training ends.
    """

    # After the parameter schedulers have stepped, before CheckpointHook saves.
    priority = 75

    def __init__(
        self,
        generator: dict[str, Any],
        feedback: Sequence[dict[str, Any]] = (dict(type='mmgap.AdversarialLoss'),),
        search: dict[str, Any] | None = None,
        synthesis: dict[str, Any] | None = None,
        critic: dict[str, Any] | bool | None = None,
        target: dict[str, Any] | None = None,
        ratio: float = 0.5,
        start: int = 1,
        rounds: int = 1,
        interval: int = 1,
        budget: int = 400,
        max_seconds: float | None = None,
        plateau: int | None = None,
        seed: int | None = None,
    ) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f'ratio must be in [0, 1), got {ratio}')
        if start < 0 or rounds < 1 or interval < 1:
            raise ValueError(
                'start must not be negative, rounds and interval at least 1, got '
                f'start={start}, rounds={rounds}, interval={interval}'
            )
        if budget < rounds:
            raise ValueError(f'budget={budget} gives not one image to each of {rounds} rounds')
        for name, value in dict(max_seconds=max_seconds, plateau=plateau).items():
            if value is not None and value <= 0:
                raise ValueError(f'{name} must be positive, or None, got {value}')
        self.generator_cfg = generator
        self.feedback = [TASK_UTILS.build(dict(config)) for config in feedback]
        self.initial_cfg, self.search_cfg = split_search(search)
        self.synthesis_cfg = dict(synthesis or {})
        self.critic_cfg = critic
        self.target_cfg = target
        self.ratio = ratio
        self.start = start
        self.rounds = rounds
        self.interval = interval
        self.budget = budget
        self.max_seconds = max_seconds
        self.plateau = plateau
        self.seed = seed
        self.state: dict[str, Any] = dict(
            rounds_done=0, images=0, before=None, rounds=[], validation=[], stopped=None
        )
        self.seconds = dict(total=0.0, evaluation=0.0, search=0.0, synthesis=0.0)
        self._parts: tuple[Any, SourceSet, Critic | None] | None = None
        self._resumed = self._trained = False
        self._waiting: dict[str, torch.Tensor] = {}

    # When: MMEngine's points

    def before_run(self, runner: Runner) -> None:
        """Let the Runner resume its own checkpoints."""
        allow_checkpoint_history()
        if dist.is_main_process():
            repair_last_checkpoint(runner.work_dir)
        dist.barrier()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take up the state of the run that is resumed."""
        self._resumed = runner._resume
        if runner._resume and 'mmgap' in checkpoint:
            self.state = checkpoint['mmgap']['state']
            self.seconds = checkpoint['mmgap']['seconds']
            self._waiting = checkpoint['mmgap'].get('gradient', {})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the hook's whole state."""
        checkpoint['mmgap'] = dict(
            state=self.state, seconds=self._elapsed(), gradient=waiting_gradient(runner)
        )

    def before_train(self, runner: Runner) -> None:
        """Wrap the training data and check the plan."""
        self._began = time.time()
        # The Runner's own may differ between processes (diff_rank_seed), and all must draw alike.
        self.seed = broadcast_object(runner.seed if self.seed is None else self.seed)
        self.folder = Path(runner.work_dir) / 'gap'
        self._by_epoch = not hasattr(runner.train_loop, 'dataloader_iterator')
        length = runner.max_epochs if self._by_epoch else runner.max_iters
        last = self._due(self.rounds - 1)
        if last >= length:
            raise ValueError(
                f'round {self.rounds - 1} would start after {last} '
                f'{"epochs" if self._by_epoch else "iterations"}, but training ends after {length};'
                ' lower start, rounds or interval'
            )
        self._check_past(runner.epoch if self._by_epoch else runner.iter)
        put_back_gradient(runner, self._waiting)
        self._waiting = {}
        if self.plateau is not None and runner._val_loop is None:
            raise ValueError(f'plateau={self.plateau} needs a val_dataloader to watch')
        self._mix = self._mix_in(runner.train_loop.dataloader)
        self._mix.seed = self.seed
        allow_nondeterministic_resize(runner.logger)
        if self.state['rounds_done'] < self.rounds:
            self._prepare(runner)  # what is wrong shall show now, not after the first epochs
        self._read_pool()
        if not self._by_epoch:
            restart_infinite_iterator(runner.train_loop, 0)
            if self._is_due(runner.iter):
                self._round(runner, dict(epoch=runner.epoch, iter=runner.iter))
                restart_infinite_iterator(runner.train_loop, 0)

    def before_train_epoch(self, runner: Runner) -> None:
        """Run the round that is due, then seed the epoch."""
        if not self._by_epoch:
            return
        if self._is_due(runner.epoch):
            self._round(runner, dict(epoch=runner.epoch, iter=runner.iter))
        self._mix.epoch = runner.epoch
        restart_workers(runner.train_loop.dataloader)
        self._seed_training(runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration of an iteration-based loop."""
        if not self._by_epoch:
            self._seed_training(runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Run the round that is due before the next iteration of an iteration-based loop."""
        self._trained = True
        done = runner.iter + 1
        if not self._by_epoch and done < runner.max_iters and self._is_due(done):
            self._round(runner, dict(epoch=runner.epoch, iter=done))
            restart_infinite_iterator(runner.train_loop, done)

    def after_train(self, runner: Runner) -> None:
        """Evaluate and report, also the rounds that training has not lasted for."""
        missed = self._missed(runner)
        if missed is not None:
            runner.logger.warning(f'[gap] {missed["why"]}')
        summary = self._summary(runner, self._evaluate(runner, 'test'), missed)
        if dist.is_main_process():
            write_json(self.folder / 'summary.json', summary)
        runner.logger.info(summary_table(summary))

    # What: one round

    def _round(self, runner: Runner, position: dict[str, int]) -> None:
        number = self.state['rounds_done']
        self.state['stopped'] = broadcast_object(self._reason_to_stop(runner))
        if self.state['stopped'] is not None:
            runner.logger.info(f'[gap] no further round: {self.state["stopped"]}')
            self._let_go()
            return
        if number == 0 and self.state['before'] is None:
            self.state['before'] = self._evaluate(runner, 'test')
        self._save(runner, position)
        runner.logger.info(f'[gap] round {number + 1} of {self.rounds} begins')
        taken = self._training_memory()
        self._parts[0].to(self._parts[0].home)
        with rank0_buffers(runner.model):
            self.state['rounds'].append(self._search_and_draw(runner, number))
        self.state['rounds_done'] = number + 1
        if number + 1 < self.rounds:
            self._make_room(runner, taken)
        else:
            self._let_go()
        self.state['images'] = len(SamplePool(self.folder / 'pool').kept)
        self._read_pool()
        self._save(runner, position)
        if dist.is_main_process():
            write_json(self.folder / 'summary.json', self._summary(runner, after=None))

    def _reason_to_stop(self, runner: Runner) -> str | None:
        """Why the round that is due shall not begin; None if it shall."""
        # Each process has its own clock, and all must go the same way from here.
        spent = broadcast_object(self.seconds['search'] + self.seconds['synthesis'])
        if self.max_seconds is not None and spent > self.max_seconds:
            return f'{spent:.0f} s of {self.max_seconds} s are spent'
        if self.plateau is None:
            return None
        report = self._evaluate(runner, 'val')
        if report['worst_group'] is None:
            raise ValueError(
                'plateau needs mmgap.GroupAccuracy or mmgap.GroupDepth in val_evaluator'
            )
        known = self.state['validation']
        known[self.state['rounds_done'] :] = [report['worst_group']]
        best_of, better = (min, lt) if report.get('measure') == 'abs_rel' else (max, gt)
        best = best_of(known[: -self.plateau], default=None)
        if best is None or better(best_of(known[-self.plateau :]), best):
            return None
        return f'worst group on val is {known[-1]:.3f}, it was {best:.3f} {self.plateau} rounds ago'

    def _search_and_draw(self, runner: Runner, number: int) -> dict[str, Any]:
        generator, sources, critic = self._parts
        pool = SamplePool(self.folder / 'pool')
        began = time.time()
        search, prompts, target = self._search(runner, number)
        found = search.run(
            prompts,
            checkpoint=self.folder / 'search' / f'round_{number}.safetensors',
            bank=PromptBank(self.folder / 'prompts'),
        )
        searched = time.time()
        settings = (self.synthesis_cfg, self.seed, number, critic)
        synthesizer = build_synthesizer(generator, sources, *settings)
        images = self.budget * (number + 1) // self.rounds - self.budget * number // self.rounds
        synthesizer.run(
            prompts, images, pool, target, self.feedback, number, keep_drawn=self._resumed
        )
        drawn = time.time()
        if dist.is_main_process():
            sheet = self.folder / f'round_{number}.png'
            steps = search.num_inference_steps
            parts = (pool, sources, generator, found, steps, number, search.batch_size)
            write_contact_sheet(sheet, *parts)
        dist.barrier()
        seconds = dict(search=searched - began, synthesis=drawn - searched)
        for name, value in seconds.items():
            self.seconds[name] += value
        return dict(
            prompts=[result.summary(sources.classes) for result in found],
            seconds=seconds,
            **round_report(SamplePool(pool.folder), number, critic),
        )

    def _evaluate(self, runner: Runner, split: str) -> dict[str, Any] | None:
        """What the evaluator of ``'test'`` or ``'val'`` says of the model; None without one."""
        if getattr(runner, f'_{split}_loop') is None:
            runner.logger.warning(f'[gap] the config has no {split}_dataloader to evaluate on')
            return None
        began = time.time()
        loop = getattr(runner, f'{split}_loop')
        # A loop of validation would save the best checkpoint and step schedules.
        with rank0_buffers(runner.model):  # those of the checkpoint
            metrics = TestLoop(runner, loop.dataloader, loop.evaluator).run()
        self.seconds['evaluation'] += time.time() - began
        return group_report(metrics)

    def _prepare(self, runner: Runner) -> None:
        """Build what all rounds share, and the parts of the first to see that they fit."""
        generator = TASK_UTILS.build(dict(self.generator_cfg))
        sources = build_sources(runner.train_loop.dataloader.dataset, generator)
        sources.load(sorted({0, len(sources) // 2, len(sources) - 1}))  # they can be read
        evaluation = [
            getattr(runner, f'{name}_loop').dataloader.dataset
            for name in ('val', 'test')
            if getattr(runner, f'_{name}_loop') is not None
        ]
        check_classes(sources, evaluation)
        features = self.folder / 'features'
        if not dist.is_main_process():
            dist.barrier()  # the main one first: the others read the features that it writes
        prepare_feedback(self.feedback, generator, sources.classes, evaluation, features)
        if dist.is_main_process():
            dist.barrier()
        critic = build_critic(self.critic_cfg, generator, sources.classes)
        self._parts = (generator, sources, critic)
        search, prompts, target = self._search(runner, self.state['rounds_done'], draw=False)
        settings = (self.synthesis_cfg, self.seed, self.state['rounds_done'], critic)
        synthesizer = build_synthesizer(generator, sources, *settings)
        if not self._resumed:
            self._try_out(runner, search, synthesizer, prompts, target)
        self._make_room(runner, None)

    def _try_out(
        self, runner: Runner, search: Any, synthesizer: Any, prompts: Any, target: Any
    ) -> None:
        """Send one image all the way: what does not fit shall end the run now, not in its round."""
        began = time.time()
        try:
            with preserved_rng():
                search.try_out(prompts)
                synthesizer.try_out(prompts, target, self.feedback)
        except Exception as error:
            error.add_note(
                '[gap] This was one image that went through search and synthesis before training, '
                'to see that generator, model and settings fit.'
            )
            raise
        runner.logger.info(
            f'[gap] one image went through search and synthesis in {time.time() - began:.1f} s'
        )

    def _make_room(self, runner: Runner, taken: int | None) -> None:
        """Let the generator wait on the CPU while the model trains, unless both fit on the GPU.

        Args:
            runner: For its logger.
            taken: Bytes that training takes at its peak; None while nobody knows.
        """
        generator = self._parts[0]
        if generator.device.type == 'cpu':
            return
        stays = taken is not None and taken + generator.memory() <= memory()
        if not stays:
            generator.to('cpu')
        release_memory()
        known = 'not known yet' if taken is None else f'{taken / 2**30:.1f} GiB at its peak'
        runner.logger.info(
            f'[gap] the generator ({generator.memory() / 2**30:.1f} GiB) waits on '
            f'{"the GPU" if stays else "the CPU"} until the next round; training takes {known}, '
            f'the GPU has {memory() / 2**30:.1f} GiB'
        )

    def _training_memory(self) -> int | None:
        """Bytes of the GPU that training took at its peak; None if nothing was trained yet."""
        if not self._trained:
            return None
        generator = self._parts[0]
        return training_memory() - (0 if generator.device.type == 'cpu' else generator.memory())

    def _let_go(self) -> None:
        """Free what no further round needs; terms and critics hold networks too."""
        self._parts, self.feedback = None, []
        release_memory()

    def _search(self, runner: Runner, number: int, draw: bool = True) -> tuple[Any, Any, Any]:
        """The search of a round, the prompts that it starts from, and its target."""
        generator, sources, critic = self._parts
        target = build_target(runner.model, runner.cfg, self.target_cfg, sources)
        parts = (generator, target, self.feedback, sources, self.initial_cfg, self.search_cfg)
        return *build_search(*parts, self.seed, number, critic, draw), target

    # Data, seeds, state

    def _mix_in(self, loader: Any) -> SyntheticMixDataset:
        """The mix in the loader's dataset; made if the config names none."""
        outer = loader.dataset
        found = mixes_in(outer)
        if len(found) > 1:
            raise ValueError(
                f'the training data has {len(found)} SyntheticMixDatasets; GAPHook fills one'
            )
        if not found:
            found = [SyntheticMixDataset(outer, ratio=self.ratio)]
            replace_dataset(loader, found[0])
        elif found[0] is not outer:  # PyTorch asks the outermost for a batch
            outer.__getitems__ = partial(batch_of, found[0], outer)
        return found[0]

    def _read_pool(self) -> None:
        if self.state['images']:
            self._mix.budget = self.state['images']
            self._mix.refresh(str(self.folder / 'pool'))

    def _check_past(self, position: int) -> None:
        due = self._due(self.state['rounds_done'])
        over = self.state['rounds_done'] >= self.rounds or self.state['stopped'] is not None
        if not over and due < position:
            raise ValueError(
                f'round {self.state["rounds_done"]} was due after {due} '
                f'{"epochs" if self._by_epoch else "iterations"}, and the run that is resumed has '
                f'done {position}; give GAPHook a later start or interval'
            )

    def _due(self, number: int) -> int:
        return self.start + number * self.interval

    def _is_due(self, position: int) -> bool:
        number = self.state['rounds_done']
        over = number >= self.rounds or self.state['stopped'] is not None
        return not over and position == self._due(number)

    def _missed(self, runner: Runner) -> dict[str, Any] | None:
        """The rounds that were due after training had ended, and why; None if there are none."""
        done = self.state['rounds_done']
        if done >= self.rounds or self.state['stopped'] is not None:
            return None
        unit, position, length = 'iterations', runner.iter, runner.max_iters
        if self._by_epoch:
            unit, position, length = 'epochs', runner.epoch, runner.max_epochs
        why = (
            f'training ended after {position} of {length} {unit}, before round {done}, which was '
            f'due after {self._due(done)}: {self.rounds - done} of {self.rounds} rounds were '
            f'never run, and {self.state["images"]} images were made'
        )
        if getattr(runner.train_loop, 'stop_training', False):
            why += '. A hook has stopped training, as EarlyStoppingHook does'
        return dict(count=self.rounds - done, why=f'{why}; lower start or interval')

    def _seed_training(self, position: int) -> None:
        seed = derive_seed(self.seed, 'training', position, dist.get_rank())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _save(self, runner: Runner, position: dict[str, int]) -> None:
        """Save the run so that ``--resume`` finds it; whole or not at all."""
        name = 'gap_round.pth'
        runner.save_checkpoint(runner.work_dir, f'.{name}', meta=dict(position))
        if dist.is_main_process():
            final = os.path.join(runner.work_dir, name)
            os.replace(os.path.join(runner.work_dir, f'.{name}'), final)
            write_bytes(Path(runner.work_dir, 'last_checkpoint'), final.encode())
        dist.barrier()

    def _elapsed(self) -> dict[str, float]:
        now = time.time()
        self.seconds['total'] += now - self._began
        self._began = now
        return dict(self.seconds)

    def _summary(
        self,
        runner: Runner,
        after: dict[str, Any] | None,
        missed: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        seconds = self._elapsed()
        stages = ('evaluation', 'search', 'synthesis')
        seconds['training'] = seconds['total'] - sum(seconds[name] for name in stages)
        return dict(
            before=self.state['before'],
            after=after,
            rounds=self.state['rounds'],
            images=self.state['images'],
            stopped=self.state['stopped'],
            rounds_missed=missed,
            seconds=seconds,
            seed=self.seed,
            versions=environment(self._mix.metainfo),
        )


def waiting_gradient(runner: Runner) -> dict[str, torch.Tensor]:
    """What a run with ``accumulative_counts`` has added up since its last step, by parameter.

    Empty just after a step, and with several processes: each has a gradient of its own until they
    are averaged at the step, and only the main one saves.
    """
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    if dist.get_world_size() > 1 or all(one.should_update() for one in wrappers):
        return {}
    parameters = _plain_model(runner).named_parameters()
    return {name: p.grad.detach().cpu() for name, p in parameters if p.grad is not None}


def put_back_gradient(runner: Runner, gradient: dict[str, torch.Tensor]) -> None:
    """Let a resumed run go on with the gradient that its checkpoint carries."""
    if not gradient:
        return
    for name, parameter in _plain_model(runner).named_parameters():
        if name in gradient:
            parameter.grad = gradient[name].to(parameter)
    runner.logger.info(
        '[gap] the gradient that waited for its step (accumulative_counts) is back from the '
        'checkpoint: nothing of it is lost'
    )


def _plain_model(runner: Runner) -> torch.nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
