# SPDX-License-Identifier: Apache-2.0
"""Prompt search: a plain loop that changes soft prompts and nothing else."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from mmgap.distributed import all_gather_list, broadcast_object
from mmgap.feedback import Critic, Feedback, least_attack
from mmgap.files import fingerprint, plain, weights_fingerprint
from mmgap.generators import DiffusionGenerator
from mmgap.generators.evaluations import of_all
from mmgap.optimizer_state import build_optimizer
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.search.alignment import AlignmentAlarm
from mmgap.search.checkpoint import RunningSearch, load_search, save_search
from mmgap.search.evaluation import PromptEvaluator, SourceSplit
from mmgap.search.progress import FoundPrompt, NonFiniteLossError, PromptProgress
from mmgap.search.settings import SearchSettings
from mmgap.search.step import SearchStep, StepScore
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import ImageSpec, Sources
from mmgap.sources.condition import bytes_of
from mmgap.targets import TargetModel
from mmgap.typed import checked

OnStep = Callable[[int, Sequence[PromptProgress]], None]


class PromptSearch:
    """Search soft prompts whose images the target fails on.

    Each step draws fresh sources and fresh noise for every prompt, unless told otherwise, so that a
    prompt cannot fit itself to a few images. Prompts do not influence each other; how they are
    split into batches, and over the processes of a distributed run, only changes speed and memory.

    Args:
        generator: Draws images, e.g. :class:`~mmgap.generators.InpaintingGenerator`.
        target: The model in training.
        feedback: Prepared terms to minimise, summed by their weights.
        sources: Labelled samples.
        settings: How to search.
        seed: Seed of every draw.
        critic: Prepared critic for the alignment alarm.
        split_seed: Seed of the split into searched and held-out sources, one for all rounds of a
            run, so that what one holds out no other has searched with; ``seed`` by default.

    Attributes:
        split: Sources to search with and held-out ones.
        evaluator: Evaluates prompts as :meth:`run` does.

    Raises:
        ValueError: If a step has no active feedback, or there is a ``stop_loss`` that the terms
            which need the target cannot reach.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        target: TargetModel,
        feedback: Sequence[Feedback],
        sources: Sources,
        settings: SearchSettings,
        seed: int = 0,
        critic: Critic | None = None,
        split_seed: int | None = None,
    ) -> None:
        for step in {0, *(term.end for term in feedback if term.end is not None)}:
            if step < settings.steps and not any(term.active(step) for term in feedback):
                raise ValueError(
                    f'search feedback is empty at step {step}: there would be nothing to minimise; '
                    'look at the weights, starts and ends of its terms'
                )
        if settings.stop_loss is not None and least_attack(feedback) >= settings.stop_loss:
            raise ValueError(
                f'search stop_loss={settings.stop_loss} cannot be reached: the terms that ask the '
                f'target fall to {least_attack(feedback):g} by their floors (inf: there are none)'
            )
        self.generator = generator
        self.target = target
        self.feedback = list(feedback)
        self.sources = sources
        self.settings = settings
        self.seed = seed
        self.alarm = None
        if settings.alarm is not None:
            alarm = checked(AlignmentAlarm, settings.alarm, critic)
            self.alarm = AlignmentAlarm(critic, **alarm)
        self.split = SourceSplit(
            sources, settings.holdout, seed if split_seed is None else split_seed
        )
        drawing = dict(
            num_inference_steps=settings.num_inference_steps, batch_size=settings.batch_size
        )
        self.evaluator = PromptEvaluator(generator, target, sources, **drawing, seed=seed)
        self._score = SearchStep(generator, target, self.feedback, sources, **drawing)
        self._clip: dict[str, Any] = {}  # of the gradient of each prompt
        self._ahead: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
        self._before: dict[str, int] | None = {}  # of an interrupted run
        self._began = generator.evaluations.counts()

    def calls(self) -> dict[str, int] | None:
        """Calls of the generator's networks by all processes, those before a resume included.

        All processes must ask. None where an older version, which did not count, began.
        """
        own = of_all(self.generator.evaluations.since(self._began))
        return None if self._before is None else dict(Counter(own) + Counter(self._before))

    def provenance(self) -> dict[str, Any]:
        """Settings, seed and terms that decide the found prompts, as plain data."""
        alarm = {} if self.alarm is None else dict(alarm=self.alarm.settings())
        terms = [term.settings() for term in self.feedback]
        return plain(dict(self.settings.identity(), seed=self.seed, **alarm, feedback=terms))

    def run(
        self,
        prompts: Sequence[SoftPrompt],
        checkpoint: str | Path | None = None,
        bank: PromptBank | None = None,
        on_step: OnStep | None = None,
    ) -> list[FoundPrompt]:
        """Search all ``prompts``; their embeddings are changed in place.

        Args:
            prompts: Where to start.
            checkpoint: File that the search saves itself to and goes on from. One of other
                prompts, settings, generator or target weights is not used, and the log says what
                differs; see :func:`~mmgap.search.checkpoint.load_search`.
            bank: Where the prompts go when they are found.
            on_step: Is told of each step when it is done: its number, from 1, and the prompts that
                took it. A search that goes on tells again what came after its checkpoint.

        Returns:
            The prompts, evaluated on held-out sources, in the given order.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf. The prompts are as they were
                before that step, and saved if there is a ``bank``.
            ValueError: If two prompts have the same id.
        """
        check_ids(prompts)
        saves = bank is not None and dist.is_main_process()
        for prompt in prompts:
            dist.broadcast(prompt.embeddings.data)  # drawn on devices that may round differently
        identity: dict[str, Any] = {}
        if checkpoint is not None or bank is not None:
            identity = broadcast_object(self._identity(prompts))
        with self.target.frozen():
            running = self._begin(prompts)
            saved = load_search(checkpoint, identity, running) if checkpoint else None
            if saved is not None:
                _log(f'search goes on from {checkpoint}')
                self._before = running.calls
                self._began = self.generator.evaluations.counts()
            if len(set(all_gather_list([running.step]))) > 1:
                raise ValueError(
                    f'not every process can read {checkpoint}, from which the search would go on; '
                    'the work directory must be on a file system that all of them see'
                )
            try:
                self._loop(running, checkpoint, identity, on_step)
                for prompt in prompts:
                    dist.broadcast(prompt.embeddings.data)
                found = self._evaluate_all(running.progress)
                calls = self.calls()
                if calls is not None:
                    total = self.generator.evaluations.total_of_all(calls)
                    for result in found:
                        result.evaluations = round(total / len(found), 6)
            except NonFiniteLossError:
                if bank is not None and saves:
                    for prompt in prompts:
                        bank.add(prompt, dict(settings=self.provenance(), complete=False))
                raise
        if bank is not None and saves:
            for result in found:
                provenance = dict(result.summary(self.sources.classes), settings=self.provenance())
                provenance['generator'] = fingerprint((saved or identity)['generator'])
                bank.add(result.prompt, provenance)
        return found

    def try_out(self, prompts: Sequence[SoftPrompt]) -> None:
        """Send one image through the search, with every term that ever counts; change nothing.

        Each process of a distributed run has its own.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        if self.settings.steps == 0:
            return
        self._begin(prompts)  # builds optimiser and schedulers
        prompt = prompts[0]
        seed = derive_seed(self.seed, 'try-out')
        source = int(self.sources.of_class(prompt.label)[0])
        starts = {term.start for term in self.feedback if term.weight > 0}
        with self.target.frozen():
            for step in sorted({0, *(start for start in starts if start < self.settings.steps)}):
                progress = PromptProgress(prompt, prompt.embeddings.detach().clone(), [0.0] * step)
                # One alone would be compiled for a batch of one.
                count = dist.get_world_size() * (2 if self.generator.compiled else 1)
                self._score([progress], [ImageSpec(source, 0, seed)] * count)

    def _begin(self, prompts: Sequence[SoftPrompt]) -> RunningSearch:
        config = copy.deepcopy(dict(self.settings.optim_wrapper or {}))
        if self.settings.rate is not None:
            words = self.generator.prompts.vocabulary().float()
            deviation = float(words.std(dim=0).square().mean().sqrt())
            config['optimizer']['lr'] = self.settings.rate * deviation
        if config.get('accumulative_counts', 1) != 1:
            raise ValueError(
                f'search optim_wrapper accumulative_counts={config["accumulative_counts"]} has no '
                'use: every step moves the prompts; take more images_per_prompt'
            )
        optimizer = build_optimizer(nn.ModuleList(prompts), config, 'search')
        # Each prompt's gradient is clipped by itself: together they would influence each other.
        self._clip = optimizer.clip_grad_kwargs or {}
        optimizer.clip_grad_kwargs = None
        return RunningSearch(
            [
                PromptProgress(
                    prompt, prompt.embeddings.detach().clone(), done=self.settings.steps == 0
                )
                for prompt in prompts
            ],
            optimizer,
            [
                PARAM_SCHEDULERS.build({'by_epoch': False, 'optimizer': optimizer, **config})
                for config in self.settings.param_scheduler or ()
            ],
        )

    def _evaluate_all(self, progress: Sequence[PromptProgress]) -> list[FoundPrompt]:
        try:
            return [self._evaluate(one) for one in progress]
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f'{error}. The search is complete: with another scheduler or eta of the generator, '
                'or num_inference_steps of the search, it goes on from here (--resume)'
            ) from error

    def _evaluate(self, progress: PromptProgress) -> FoundPrompt:
        held_out = self.split.held_out(progress.prompt.label)
        found = self.evaluator.compare(progress, held_out)
        if self.alarm is not None:
            found = self.alarm.check(found, self.evaluator, held_out)
        found.words = self.generator.prompts.nearest_words(found.prompt)
        return found

    def _loop(
        self,
        running: RunningSearch,
        checkpoint: str | Path | None,
        identity: Mapping[str, Any],
        on_step: OnStep | None,
    ) -> None:
        settings, began, first = self.settings, time.monotonic(), running.step
        while active := running.active:
            for progress, score in zip(active, self.step(active), strict=True):
                self._take(progress, score, running.optimizer)
            running.optimizer.step()
            running.optimizer.zero_grad()
            for scheduler in running.schedulers:
                scheduler.step()
            step, over = running.step, not running.active
            if on_step is not None:
                on_step(step, active)
            if over or step % settings.log_interval == 0:
                self._log_step(step, active, (time.monotonic() - began) / max(1, step - first))
            due = over or step % settings.checkpoint_interval == 0
            if checkpoint and due:
                running.calls = self.calls()
                if dist.is_main_process():
                    save_search(checkpoint, identity, running)

    def _take(self, progress: PromptProgress, score: StepScore, optimizer: OptimWrapper) -> None:
        """Record a prompt's step: stop it, start it again, or let the optimiser move it."""
        step = len(progress.losses)
        if step & (step - 1) == 0:  # 0, 1, 2, 4, 8, …: most happens early
            progress.snapshots[step] = progress.prompt.embeddings.detach().clone()
        progress.total += 1
        progress.losses.append(score.loss)
        progress.attacks.append(score.attack)
        progress.hits.append(score.hits)
        if self._reached(progress):
            progress.done = True
        elif self._stuck(progress) and progress.restarts < self.settings.restarts:
            self._restart(progress, optimizer)
        else:
            progress.prompt.embeddings.grad = score.gradient
            if self._clip:
                optimizer.clip_func([progress.prompt.embeddings], **self._clip)
            progress.done = len(progress.losses) >= self.settings.steps

    def _reached(self, progress: PromptProgress) -> bool:
        window, stop_loss = self.settings.stop_window, self.settings.stop_loss
        recent = progress.attacks[-window:]
        if stop_loss is None or len(recent) < window:
            return False
        return sum(recent) / window < stop_loss

    def _stuck(self, progress: PromptProgress) -> bool:
        patience = self.settings.patience
        if len(progress.losses) != patience:
            return False
        window = max(1, patience // 4)
        before = sum(progress.losses[:window]) / window
        after = sum(progress.losses[-window:]) / window
        moved = before - after >= self.settings.min_drop * abs(before)
        return not moved and sum(progress.hits[-window:]) / window > 0.5

    def _restart(self, progress: PromptProgress, optimizer: OptimWrapper) -> None:
        progress.restarts += 1
        prompt = progress.prompt
        seed = derive_seed(self.seed, 'restart', prompt.id, progress.restarts)
        again = self.generator.prompts.random_prompt(len(prompt.embeddings), seed, prompt.id)
        with torch.no_grad():
            prompt.embeddings.copy_(again.embeddings)
        dist.broadcast(prompt.embeddings.data)
        optimizer.optimizer.state.pop(prompt.embeddings, None)
        progress.initial = prompt.embeddings.detach().clone()
        progress.losses, progress.attacks, progress.hits = [], [], []
        progress.snapshots = {}
        _log(f'{prompt.id} did not move and starts again ({progress.restarts})')

    def step(self, active: list[PromptProgress]) -> list[StepScore]:
        """Draw images with each active prompt and score them; no prompt is changed."""
        # The next step's are read meanwhile; a prompt that stops or starts again wastes a few.
        return self._score(active, self._images(active), self._images(active, ahead=1))

    def _images(self, active: Sequence[PromptProgress], ahead: int = 0) -> list[ImageSpec]:
        """The images of the step that comes after ``ahead`` others."""
        images, known = [], {}
        for prompt_index, progress in enumerate(active):
            step = len(progress.losses) + ahead if self.settings.fresh else 0
            name = (progress.prompt.id, progress.restarts, step)
            known[name] = self._ahead.get(name) or self._choose(progress.prompt.label, *name)
            images += [ImageSpec(source, prompt_index, seed) for source, seed in known[name]]
        self._ahead = known
        return images

    def _choose(self, label: int | None, *name: str | int) -> list[tuple[int, int]]:
        """Source and seed of each image of a prompt's step."""
        rng = derive_rng(self.seed, 'search', *name)
        every, count = self.split.searched(label), self.settings.images_per_prompt
        chosen = rng.choice(every, count, replace=len(every) < count).tolist()
        return list(zip(chosen, rng.integers(2**62, size=count).tolist(), strict=True))

    def evaluate(self, prompt: SoftPrompt) -> dict[str, float]:
        """What the target makes of a prompt's images around the held-out sources of all classes.

        Returns:
            ``target_loss`` and ``accuracy``: means over the sources of the prompt's class, over all
            if it has none. ``crossed_target_loss`` and ``crossed_accuracy``: over all.

        Raises:
            NonFiniteLossError: If a loss is NaN or Inf.
            ValueError: If no sources are held out.
        """
        if self.settings.holdout == 0:
            raise ValueError('search holdout=0 leaves no sources to evaluate prompts on')
        classes = range(len(self.sources.classes))
        held_out = [source for label in classes for source in self.split.held_out(label)]
        with self.target.frozen():
            losses, hits = map(np.array, self.evaluator.per_source(prompt, held_out))
        own = self.sources.labels[held_out] == prompt.label
        own = own if prompt.label is not None else np.ones_like(own)
        return dict(
            target_loss=float(losses[own].mean()),
            accuracy=float(hits[own].mean()),
            crossed_target_loss=float(losses.mean()),
            crossed_accuracy=float(hits.mean()),
        )

    def _identity(self, prompts: Sequence[SoftPrompt]) -> dict[str, Any]:
        """What decides the found prompts, as plain data."""
        # Contents of all would take long; what lies in a file's place is seldom as large.
        infos = map(self.sources.dataset.get_data_info, range(len(self.sources)))
        files = [bytes_of(info) for info in infos]
        identity = dict(
            search=self.provenance(),
            prompts=[[p.id, p.label, p.template, p.joiner, p.turn] for p in prompts],
            sources=fingerprint([self.sources.labels.tolist(), self.sources.unit, files]),
            initial=weights_fingerprint(nn.ModuleList(prompts)),
            generator=self.generator.settings(),
            gradient=self.generator.gradient.identity(),
            target=self.target.identity(),
        )
        return plain(identity)

    def _log_step(self, step: int, active: list[PromptProgress], seconds: float) -> None:
        hub = MessageHub.get_current_instance()
        moved = [progress for progress in active if progress.losses]
        for progress in moved:
            hub.update_scalar(f'gap/loss/{progress.prompt.id}', progress.losses[-1])
        loss = sum(progress.losses[-1] for progress in moved) / max(1, len(moved))
        hits = [p.hits[-1] for p in moved if not math.isnan(p.hits[-1])]
        accuracy = f', target accuracy {sum(hits) / len(hits):.2f}' if hits else ''
        terms = [f'{name} {sum(v) / len(v):.3f}' for name, v in self._score.means.items()]
        by_term = f' ({", ".join(terms)})' if len(terms) > 1 else ''
        left = max(self.settings.steps - len(progress.losses) for progress in active)
        _log(
            f'search step {step}: {len(active)} prompts, loss {loss:.3f}{by_term}{accuracy}, '
            f'{seconds:.2f} s a step, at most {left * seconds:.0f} s left'
        )


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(f'[gap] {message}')


def check_ids(prompts: Sequence[SoftPrompt]) -> None:
    """See that no two prompts have one name, by which files and manifests know them.

    Raises:
        ValueError: If two have.
    """
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) < len(ids):
        raise ValueError(f'prompts must have different ids, got {ids}')
