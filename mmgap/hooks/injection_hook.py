# SPDX-License-Identifier: Apache-2.0
"""InjectionHook: how the images of a pool enter training, from its beginning to its end."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgap.compat import (
    allow_checkpoint_history,
    repair_last_checkpoint,
    restart_infinite_iterator,
    restart_workers,
)
from mmgap.configs import check_one_steers
from mmgap.distributed import broadcast_object
from mmgap.files import fingerprint, finite, plain, write_json
from mmgap.hooks import runner_access
from mmgap.hooks.schedule import Position
from mmgap.hooks.watching import VisualizerWatcher
from mmgap.injection import (
    InjectionSettings,
    Refit,
    SampleWeights,
    check_classes,
    check_refit,
    judge_images,
    keep_statistics,
    label_type_of,
    pooled_features,
    rate_note,
)
from mmgap.loop.report import run_summary, summary_table
from mmgap.pool import SamplePool
from mmgap.registry import HOOKS
from mmgap.report import write_page
from mmgap.seeds import preserved_rng
from mmgap.typed import build_settings, typed


@HOOKS.register_module()
@typed
class InjectionHook(Hook):
    """Bring the images of a pool into training: mixed in, as a refit at its end, or in stages.

    For pools that there are already, as ``mmgap generate`` makes them; :class:`mmgap.GAPHook`
    makes its own and does the same with them. The training data are wrapped in a
    :class:`mmgap.SyntheticMixDataset`, if the config names none.

    Everything random in training (model, augmentation, mixing) is seeded anew from (seed, epoch)
    or (seed, iteration), so that a run that was killed and resumed ends as one that was not. The
    checkpoint before a refit is ``gap_trained.pth``, the one after it ``gap_refit.pth``.

    Args:
        pool: Folder of the pool.
        budget: Take only the first so many images; by default what the mix says, or else all.
        injection: Fields of :class:`~mmgap.injection.InjectionSettings`.
        seed: Seed of every draw; the Runner's by default.
        report: Whether to test at the end, and write ``gap/summary.json`` and ``gap/report.html``.

    Raises:
        TypeError: If there is no such setting of ``injection``.
        ValueError: If a setting is out of range.
        FileNotFoundError: If the pool has no samples, when training begins.
    """

    # After the parameter schedulers have stepped, before CheckpointHook saves.
    priority = 75

    def __init__(
        self,
        pool: str | None = None,
        budget: int | None = None,
        injection: Mapping[str, Any] | None = None,
        seed: int | None = None,
        report: bool = True,
    ) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f'budget must be at least 1, or None for the whole pool, got {budget}')
        self.asked = build_settings(InjectionSettings, injection or {}, 'injection')
        self.injection = self.asked
        self.pool = pool
        self.budget = budget
        self.given_seed = seed
        self.reports = report
        self.state: dict[str, Any] = dict(
            images=0, since=None, ratio=None, injection=None, asked=None, refit=None
        )
        self.seconds = dict(total=0.0, evaluation=0.0, injection=0.0)
        self._weights: SampleWeights | None = None
        self._weighted: Any = None
        self._waiting: dict[str, torch.Tensor] = {}
        self._resumed = self._kept = False

    # MMEngine's points

    def before_run(self, runner: Runner) -> None:
        """See that no other hook injects too, and let the Runner resume its own checkpoints."""
        found = [hook for hook in runner.hooks if isinstance(hook, InjectionHook)]
        check_one_steers([type(hook).__name__ for hook in found])
        allow_checkpoint_history()
        if dist.is_main_process():
            repair_last_checkpoint(runner.work_dir)
        dist.barrier()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take up the state of the run that is resumed."""
        self._resumed = runner._resume
        if runner._resume and 'mmgap' in checkpoint:
            self.state.update(checkpoint['mmgap']['state'])
            self.seconds.update(checkpoint['mmgap']['seconds'])
            self._waiting = checkpoint['mmgap'].get('gradient', {})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the hook's whole state."""
        gradient = runner_access.waiting_gradient(runner)
        checkpoint['mmgap'] = dict(state=self.state, seconds=self._elapsed(), gradient=gradient)

    def before_train(self, runner: Runner) -> None:
        """Wrap the training data, and read the pool."""
        self._begin(runner)
        self.pool = self.pool or self._mix.pool
        if self.pool is None:
            raise ValueError(
                'InjectionHook needs the pool: its own, or that of a SyntheticMixDataset in the '
                'training data'
            )
        images = self.budget or self._mix.budget or len(SamplePool(self.pool).kept)
        if not images:
            raise FileNotFoundError(f'pool={self.pool!r} has no samples')
        self._take_images(runner, images)
        self._watcher.injected(self.state['injection'], runner.iter)
        depth = self._mix.generated.depth_unit is not None
        self._try_out(runner, 'depth' if depth else 'classes')
        self._set_ratio(runner)
        if not self._by_epoch:
            restart_infinite_iterator(runner.train_loop, 0)

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the ratio and seed the epoch."""
        if not self._by_epoch:
            return
        self._set_ratio(runner)
        self._mix.epoch = runner.epoch
        restart_workers(runner.train_loop.dataloader)
        runner_access.seed_training(self.seed, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration of an iteration-based loop; weigh the batch's samples."""
        if not self._by_epoch:
            runner_access.seed_training(self.seed, runner.iter)
        keeps = self.injection.norm_eval and self._mix.synthetic is not None and self._mix.ratio > 0
        if keeps:
            keep_statistics(runner.model)
        elif self._kept:
            runner.model.train()
        self._kept = keeps
        if self.injection.weight != 1 and self._mix.synthetic is not None:
            if self._weights is None:
                self._weights = SampleWeights(runner_access.plain_model(runner))
            marks = runner_access.from_folder(data_batch, self._mix.synthetic.pool)
            weights = [self.injection.weight if mark else 1.0 for mark in marks]
            self._weighted = self._weights.weighting(weights)
            self._weighted.__enter__()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Set the ratio of the next iteration of an iteration-based loop."""
        if self._weighted is not None:
            self._weighted.__exit__(None, None, None)
            self._weighted = None
        done = runner.iter + 1
        if not self._by_epoch and done < runner.max_iters and self._set_ratio(runner, done):
            restart_infinite_iterator(runner.train_loop, done)

    def after_train(self, runner: Runner) -> None:
        """Refit, evaluate and report."""
        self._finish(runner)

    # Parts of these, which GAPHook has too

    def _settings(self) -> dict[str, Any]:
        return dict(pool=self.pool, budget=self.budget, injection=vars(self.asked))

    def _begin(self, runner: Runner) -> None:
        self._began = time.monotonic()
        # The Runner's own may differ between processes (diff_rank_seed), and all must draw alike.
        self.seed = broadcast_object(runner.seed if self.given_seed is None else self.given_seed)
        self.folder = Path(runner.work_dir) / 'gap'
        self._watcher = VisualizerWatcher(runner.visualizer)
        self._about = dict(runner_access.describe(runner), settings=finite(plain(self._settings())))
        self._by_epoch = not hasattr(runner.train_loop, 'dataloader_iterator')
        position = Position.of(runner, self._by_epoch)
        if self.state['refit'] is not None and position.done < position.length:
            self._take_back_refit(runner)
        runner_access.put_back_gradient(runner, self._waiting)
        self._waiting = {}
        self._mix, named = runner_access.mix_in(runner.train_loop.dataloader)
        self._mix.seed = self.seed
        runner_access.keep_order(runner, self._mix)
        self.injection = self.asked
        if (
            named
            and self.injection.ratio is None
            and self.injection.mode in ('mix', 'refit', 'auto')
        ):
            self.injection = replace(self.injection, ratio=self._mix.ratio)
        elif self._mix.mode == 'extend':
            raise ValueError(
                f'injection mode {self.injection.mode!r}, ratio={self.injection.ratio} needs a '
                "SyntheticMixDataset with mode='replace'; with mode='extend' its own ratio counts"
            )
        outermost = self._mix is runner.train_loop.dataloader.dataset
        if self.injection.mode == 'replace' and not outermost:
            raise ValueError(
                "injection mode='replace' needs the SyntheticMixDataset to be the outermost "
                'dataset: inside of another, its places are not those that the images were drawn '
                'around'
            )

    def _take_back_refit(self, runner: Runner) -> None:
        """Training that was at its end goes on: from the weights before the refit."""
        before = Path(runner.work_dir, 'gap_trained.pth')
        if before.is_file():
            runner.load_checkpoint(str(before))
        else:
            runner.logger.warning(
                f'[gap] training goes on from the refitted model: there is no {before}'
            )
        self.state['refit'] = None

    def _try_out(self, runner: Runner, label_type: str) -> None:
        """Find what does not fit before the first epoch, not after the last."""
        model = runner_access.plain_model(runner)
        probed = self.injection.mode == 'auto' and label_type == 'classes'
        if self.injection.mode == 'refit' or probed:
            check_refit(model, self.injection, label_type)
        real, reader = self._mix.dataset, runner_access.test_pipeline(runner)
        if self.injection.weight != 1:
            SampleWeights(model)
            if getattr(model.data_preprocessor, 'batch_augments', None):
                raise ValueError(
                    'injection weight does not go with batch_augments as Mixup and CutMix, which '
                    'make one sample of a real and a generated one'
                )
            with preserved_rng():
                runner_access.from_folder(pseudo_collate([real[0]]), '')
        if probed and reader is not None and not self._resumed:
            with preserved_rng():
                pooled_features(model, real, [0, len(real) - 1], reader)

    def _take_images(self, runner: Runner, images: int, done: int | None = None) -> None:
        """Read the pool, and see in which way its images shall enter training."""
        if not images:
            return
        self._mix.budget = images
        self._mix.refresh(str(self.pool or self.folder / 'pool'))
        asked = fingerprint(plain(vars(self.injection)))
        if self.state['since'] is None:
            position = Position.of(runner, self._by_epoch)
            self.state['since'] = position.done if done is None else done
        known = self.state['injection'] is not None and self.state['asked'] == asked
        if not known or self.state['images'] != images:
            began = time.monotonic()
            self.state['injection'] = judge_images(
                runner_access.plain_model(runner),
                self._mix.generated,
                self._mix.dataset,
                self.injection,
                runner_access.test_pipeline(runner),
                seed=self.seed,
            )
            self.state['asked'] = asked
            self.seconds['injection'] += time.monotonic() - began
        if self.mode == 'refit':
            check_classes(self._mix.generated, self.injection)
            self._note_rate(runner)
        runner.message_hub.update_info('gap_injection', self.state['injection'])
        self.state['images'] = images
        if self.mode == 'replace':
            self._mix.pair()

    def _note_rate(self, runner: Runner) -> None:
        since, position = self.state['since'], Position.of(runner, self._by_epoch)
        # Said when images come, not again by a run that is resumed. Where they are there from the
        # beginning, a schedule is what takes the rate down.
        if since < position.done or (since == 0 and runner.param_schedulers):
            return
        note = rate_note(
            runner_access.plain_model(runner),
            self.injection,
            label_type_of(self._mix.generated),
            runner_access.learning_rate(runner),
        )
        if note is not None:
            runner.logger.warning(f'[gap] {note}')

    @property
    def mode(self) -> str:
        """The mode of injection: that of the settings or, for ``auto``, the one that was chosen."""
        chosen = self.state['injection']
        return self.injection.mode if chosen is None else chosen['mode']

    def _set_ratio(self, runner: Runner, done: int | None = None) -> bool:
        """Set the mix's ratio for what comes next; whether it has changed so that one would see."""
        position = Position.of(runner, self._by_epoch)
        if self.state['since'] is None or self._mix.mode != 'replace':
            return False
        left = max(1, position.length - self.state['since'])
        progress = ((position.done if done is None else done) - self.state['since']) / left
        ratio = self.injection.in_mode(self.mode).ratio_at(progress)
        kept = self.state['ratio']  # a run that is resumed goes on with it
        changed = kept is None or abs(ratio - kept) >= 0.05  # workers start anew for it
        if changed or self._by_epoch:
            self.state['ratio'] = ratio
        self._mix.ratio = self.state['ratio']
        return changed

    @contextmanager
    def repaired(self, runner: Runner, round_index: int) -> Iterator[None]:
        """While open, the model is a refitted one, where there are images to refit it to."""
        if self.mode != 'refit' or self._mix.synthetic is None:
            yield
            return
        model = runner_access.plain_model(runner)
        kept = copy.deepcopy(model.state_dict())
        self._refit(runner, f'round_{round_index}')
        try:
            yield
        finally:
            model.load_state_dict(kept)

    def _refit(self, runner: Runner, name: str) -> dict[str, Any]:
        began = time.monotonic()
        images = self._mix.generated
        report = Refit(
            runner.model,
            images,
            self._mix.dataset,
            self.injection,
            label_type=label_type_of(images),
            seed=self.seed,
        ).run(self.folder / 'refit' / f'{name}.safetensors')
        self.seconds['injection'] += time.monotonic() - began
        return report

    def _finish(self, runner: Runner, missed: dict[str, Any] | None = None) -> None:
        due = self.mode == 'refit' and self._mix.synthetic is not None
        if due and self.state['refit'] is None:
            position = dict(epoch=runner.epoch, iter=runner.iter)
            runner_access.save_run(runner, 'gap_trained.pth', position)
            for buffer in runner.model.buffers():  # those of the checkpoint, in each process
                dist.broadcast(buffer)
            with runner_access.averaged(runner):
                report = self._refit(runner, 'end')
            self.state['refit'] = report
            runner_access.save_run(runner, 'gap_refit.pth', position)
        if self.reports:
            after = self._evaluate(runner, 'test')
            summary = self._write_summary(after, missed, finished=True)
            self._watcher.evaluated(after, runner.iter)
            self._watcher.timed(summary['seconds'], runner.iter)
            runner.logger.info(summary_table(summary))

    def _evaluate(self, runner: Runner, split: str) -> dict[str, Any] | None:
        began = time.monotonic()
        report = runner_access.evaluate(runner, split)
        self.seconds['evaluation'] += time.monotonic() - began
        return report

    def _elapsed(self) -> dict[str, float]:
        now = time.monotonic()
        self.seconds['total'] += now - self._began
        self._began = now
        return dict(self.seconds)

    def _write_summary(
        self,
        after: dict[str, Any] | None,
        missed: dict[str, Any] | None = None,
        finished: bool = False,
    ) -> dict[str, Any]:
        metainfo, about = self._mix.metainfo, dict(self._about, finished=finished)
        seconds = self._elapsed()
        summary = run_summary(self.state, seconds, after, missed, self.seed, metainfo, about)
        if dist.is_main_process():
            write_json(self.folder / 'summary.json', summary)
            write_page(self.folder.parent)
        return summary
