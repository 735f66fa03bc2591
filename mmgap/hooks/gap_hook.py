# SPDX-License-Identifier: Apache-2.0
"""GAPHook: when a round runs. Only :mod:`mmgap.hooks` knows the Runner."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import is_dataclass
from typing import Any

from mmengine import dist
from mmengine.runner import Runner

from mmgap.compat import allow_nondeterministic_resize, restart_infinite_iterator
from mmgap.configs import change_hook, warn_renamed
from mmgap.distributed import broadcast_object, raise_on_all_ranks, rank0_buffers
from mmgap.hooks import runner_access
from mmgap.hooks.injection_hook import InjectionHook
from mmgap.hooks.schedule import Position, check_plan, plateaued, rounds_missed
from mmgap.locks import locked
from mmgap.loop import GAPSettings, Loop
from mmgap.loop.method import describe_method
from mmgap.machine import release_memory
from mmgap.pool import SamplePool
from mmgap.registry import HOOKS


@HOOKS.register_module()
class GAPHook(InjectionHook):
    """Close the loop: search prompts against the model in training, draw, inject, train on.

    Add it to ``custom_hooks`` of any MMPretrain config whose training data have masks, or of any
    config of MMSegmentation's depth models. If the config names no
    :class:`mmgap.SyntheticMixDataset`, the hook wraps the training data in one that replaces: the
    epoch stays as long as it was. How images enter training is said by ``injection``, see
    :class:`mmgap.InjectionHook`.

    Everything random in training (model, augmentation, mixing) is seeded anew from (seed, epoch)
    or (seed, iteration), so that a run that was killed and resumed ends as one that was not.

    Before training, one image goes through search and synthesis, to find what does not fit. On a
    GPU the generator waits on the CPU while the model trains, unless both fit. After the search of
    a round is complete, a resumed run may have another ``generator.scheduler``, ``generator.eta``,
    ``search.num_inference_steps`` and ``synthesis``: it goes on with the prompts that were found.

    A config that inherits from one with a GAPHook changes its settings by ``gap_hook``, say
    ``gap_hook = dict(search=dict(steps=5))``; see :func:`mmgap.configs.change_hook`.

    Args:
        generator: Config of the generator.
        **settings: The other fields of :class:`~mmgap.loop.GAPSettings`, as dicts and lists.

    Raises:
        TypeError: If there is no such setting.
        ValueError: If a setting is out of range or the last round would start after training ends.
    """

    def __init__(self, generator: dict[str, Any], **settings: Any) -> None:
        self._config = dict(settings, generator=generator)
        self.settings = GAPSettings.from_config(self._config)
        super().__init__(injection=vars(self.settings.injection), seed=self.settings.seed)
        self.state.update(rounds_done=0, before=None, rounds=[], validation=[], stopped=None)
        self.state.update(method=None)
        self.seconds.update(search=0.0, synthesis=0.0)
        self._loop: Loop | None = None
        self._locks = ExitStack()
        self._trained = False

    # MMEngine's points

    def before_run(self, runner: Runner) -> None:
        """Take the changes of the config's ``gap_hook``, before anything is built."""
        super().before_run(runner)
        warn_renamed(runner.cfg)
        changes = runner.cfg.get('gap_hook')
        if changes is not None:
            self.settings = GAPSettings.from_config(change_hook(self._config, changes))
            self.asked = self.injection = self.settings.injection
            self.given_seed = self.settings.seed

    def before_train(self, runner: Runner) -> None:
        """Wrap the training data, check the plan, and set up the loop."""
        self._lock(runner)
        self._begin(runner)
        position = Position.of(runner, self._by_epoch)
        check_plan(self.settings, self.state['rounds_done'], self._over(), position)
        if self.settings.plateau is not None and runner._val_loop is None:
            raise ValueError(f'plateau={self.settings.plateau} needs a val_dataloader to watch')
        allow_nondeterministic_resize(runner.logger)
        if self.state['rounds_done'] < self.settings.rounds:
            self.state['method'] = describe_method(self.settings)
            runner.logger.info(f'[gap] {self.state["method"]}')
            self._loop = self._set_up(runner)  # what is wrong shall fail before the first epochs
        self._take_images(runner, self.state['images'])
        self._set_ratio(runner)
        if not self._by_epoch:
            restart_infinite_iterator(runner.train_loop, 0)
            if self._is_due(runner.iter):
                self._round(runner, dict(epoch=runner.epoch, iter=runner.iter))
                restart_infinite_iterator(runner.train_loop, 0)

    def before_train_epoch(self, runner: Runner) -> None:
        """Run the round that is due, then begin the epoch."""
        if self._by_epoch and self._is_due(runner.epoch):
            self._round(runner, dict(epoch=runner.epoch, iter=runner.iter))
        super().before_train_epoch(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Run the round that is due before the next iteration of an iteration-based loop."""
        self._trained = True
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        done = runner.iter + 1
        if not self._by_epoch and done < runner.max_iters and self._is_due(done):
            self._round(runner, dict(epoch=runner.epoch, iter=done))
            restart_infinite_iterator(runner.train_loop, done)

    def after_train(self, runner: Runner) -> None:
        """Refit, evaluate and report, also the rounds that training has not lasted for."""
        missed = None
        if not self._over():
            stopped = getattr(runner.train_loop, 'stop_training', False)
            position = Position.of(runner, self._by_epoch)
            missed = rounds_missed(self.settings, self.state, position, stopped)
            runner.logger.warning(f'[gap] {missed["why"]}')
        self._finish(runner, missed)
        self._locks.close()

    def _lock(self, runner: Runner) -> None:
        """Refuse to train where another process trains."""
        with raise_on_all_ranks(BlockingIOError):
            if dist.is_main_process():
                self._locks.enter_context(locked(runner.work_dir))

    def _settings(self) -> dict[str, Any]:
        own = vars(self.settings).items()
        return {name: vars(value) if is_dataclass(value) else value for name, value in own}

    # A round

    def _set_up(self, runner: Runner) -> Loop:
        loop = Loop.build(
            self.settings,
            runner.train_loop.dataloader.dataset,
            config=runner.cfg,
            evaluation=runner_access.evaluation_datasets(runner),
            seed=self.seed,
            features=self.folder / 'features',
        )
        target = loop.target(model=runner.model)
        loop.try_out(target, self.state['rounds_done'], draw=not self._resumed)
        self._try_out(runner, loop.sources.label_type)
        loop.make_room(None)
        return loop

    def _round(self, runner: Runner, position: dict[str, int]) -> None:
        round_index, loop = self.state['rounds_done'], self._loop
        self.state['stopped'] = broadcast_object(self._reason_to_stop(runner))
        if loop is None or self.state['stopped'] is not None:
            runner.logger.info(f'[gap] no further round: {self.state["stopped"]}')
            loop = None  # the last reference to the networks
            self._release()
            return
        if round_index == 0 and self.state['before'] is None:
            self.state['before'] = self._evaluate(runner, 'test')
            self._watcher.evaluated(self.state['before'], position['iter'])
        runner_access.save_run(runner, 'gap_round.pth', position)
        runner.logger.info(f'[gap] round {round_index + 1} of {self.settings.rounds} begins')
        training = loop.training_memory() if self._trained else None
        loop.wake()
        with rank0_buffers(runner.model), self.repaired(runner, round_index):
            target = loop.target(model=runner.model)
            report = loop.run(target, self.folder, round_index, self._resumed, self._watcher)
        self.state['rounds'].append(report)
        for stage, seconds in report['seconds'].items():
            self.seconds[stage] += seconds
        self.state['rounds_done'] = round_index + 1
        if round_index + 1 < self.settings.rounds:
            loop.make_room(training)
        else:
            loop = None
            self._release()
        done = position['epoch' if self._by_epoch else 'iter']  # the Runner counts one less yet
        self._take_images(runner, len(SamplePool(self.folder / 'pool').kept), done)
        self._set_ratio(runner, done)
        self._watcher.finished_round(report, self.state['images'], position['iter'])
        if self.state['injection'] is not None:
            self._watcher.injected(self.state['injection'], position['iter'])
        runner_access.save_run(runner, 'gap_round.pth', position)
        self._write_summary(after=None)

    def _release(self) -> None:
        """Free what no further round needs."""
        self._loop = None
        release_memory()

    # When

    def _over(self) -> bool:
        done = self.state['rounds_done']
        return done >= self.settings.rounds or self.state['stopped'] is not None

    def _is_due(self, position: int) -> bool:
        return not self._over() and position == self.settings.due(self.state['rounds_done'])

    def _reason_to_stop(self, runner: Runner) -> str | None:
        """Why the round that is due shall not begin; None if it shall."""
        settings = self.settings
        # Each process has its own clock, and all must go the same way from here.
        spent = broadcast_object(self.seconds['search'] + self.seconds['synthesis'])
        if settings.max_seconds is not None and spent > settings.max_seconds:
            return f'{spent:.0f} s of {settings.max_seconds} s are spent'
        if settings.plateau is None:
            return None
        report = self._evaluate(runner, 'val')
        if report is None or report['worst_group'] is None:
            raise ValueError(
                'plateau needs mmgap.GroupAccuracy, mmgap.MacroF1 or mmgap.GroupDepth in '
                'val_evaluator'
            )
        history = self.state['validation']
        history[self.state['rounds_done'] :] = [report['worst_group']]
        return plateaued(history, settings.plateau, report.get('measure') == 'abs_rel')
