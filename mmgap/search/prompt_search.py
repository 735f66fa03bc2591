# SPDX-License-Identifier: Apache-2.0
"""Prompt search: a plain loop that changes soft prompts and nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import Tensor, nn

from mmgap.distributed import all_gather_list, broadcast_object
from mmgap.feedback import Critic, Feedback, least_attack
from mmgap.files import fingerprint, plain, weights_fingerprint
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.search.alignment import AlignmentAlarm
from mmgap.search.checkpoint import load_search, save_search
from mmgap.search.evaluation import PromptEvaluator
from mmgap.search.progress import FoundPrompt, NonFiniteLossError, PromptProgress
from mmgap.search.step import Job, Scores, SearchStep
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import SourceSet
from mmgap.targets import TargetModel


class PromptSearch:
    """Search soft prompts whose images the target fails on.

    Each step draws fresh sources and fresh noise for every prompt, unless told otherwise, so that a
    prompt cannot fit itself to a few images. Prompts do not influence each other; how they are
    split into batches, and over the processes of a distributed run, only changes speed and memory.

    Args:
        generator: Draws images, e.g. :class:`~mmgap.generators.InpaintingGenerator`.
        target: The model in training.
        feedback: Prepared terms to minimise, summed by their weights.
        sources: Labelled, masked images.
        steps: Steps per prompt.
        num_inference_steps: Denoising steps of an image.
        images_per_prompt: Images per prompt and step.
        batch_size: Images drawn at a time, by each process.
        optim_wrapper: Config of MMEngine's optimiser wrapper.
        param_scheduler: Configs of MMEngine's parameter schedulers, counted in steps.
        stop_loss: A prompt stops when its attack falls below this: the weighted sum of the terms
            that ask the target, without guidance. It keeps the embeddings that reached it, those
            before that step's update.
        stop_window: Latest steps whose mean is compared with ``stop_loss``: with few images
            per step, a single one may be low by luck.
        fresh: Whether each step has its own sources and noise. With the same ones throughout, a
            prompt fits itself to these few images.
        max_restarts: How often a prompt that does not move may start again, from a draw of the
            vocabulary's Gaussian.
        patience: Steps after which a prompt is looked at for a restart.
        min_drop: Share of its loss that a prompt must have lost by then, unless the target already
            fails on most of its images.
        holdout: Sources that are held out to evaluate a class's prompts, and never used in
            their search; as many of all sources together for prompts that belong to no class.
        checkpoint_interval: Steps between two saves of the search.
        log_interval: Steps between two log lines.
        alarm: Sets a found prompt back to its last good step where it has left its class.
        seed: Seed of every draw.

    Raises:
        ValueError: If a count is not positive, a step has no active feedback, or there is a
            ``stop_loss`` that the terms which ask the target cannot reach.
    """

    def __init__(
        self,
        generator: Any,
        target: TargetModel,
        feedback: Sequence[Feedback],
        sources: SourceSet,
        steps: int = 1000,
        num_inference_steps: int = 5,
        images_per_prompt: int = 4,
        batch_size: int = 8,
        optim_wrapper: dict[str, Any] | None = None,
        param_scheduler: Sequence[dict[str, Any]] = (),
        stop_loss: float | None = None,
        stop_window: int = 1,
        fresh: bool = True,
        max_restarts: int = 2,
        patience: int = 20,
        min_drop: float = 0.1,
        holdout: int = 16,
        checkpoint_interval: int = 10,
        log_interval: int = 10,
        alarm: AlignmentAlarm | None = None,
        seed: int = 0,
    ) -> None:
        counts = dict(
            steps=steps,
            num_inference_steps=num_inference_steps,
            images_per_prompt=images_per_prompt,
            batch_size=batch_size,
            stop_window=stop_window,
            patience=patience,
            holdout=holdout,
            checkpoint_interval=checkpoint_interval,
            log_interval=log_interval,
        )
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f'search {name} must be at least 1, got {value}')
        for step in {0, *(term.end for term in feedback if term.end is not None)}:
            if step < steps and not any(term.active(step) for term in feedback):
                raise ValueError(
                    f'search feedback is empty at step {step}: there would be nothing to minimise; '
                    'look at the weights, starts and ends of its terms'
                )
        if stop_loss is not None and least_attack(feedback) >= stop_loss:
            raise ValueError(
                f'search stop_loss={stop_loss} cannot be reached: the terms that ask the target '
                f'fall to {least_attack(feedback):g} by their floors (inf: there are none)'
            )
        self.generator = generator
        self.target = target
        self.feedback = list(feedback)
        self.sources = sources
        self.steps = steps
        self.num_inference_steps = num_inference_steps
        self.images_per_prompt = images_per_prompt
        self.batch_size = batch_size
        self.optim_wrapper = dict(
            optim_wrapper or dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
        )
        self.param_scheduler = list(param_scheduler)
        self.stop_loss = stop_loss
        self.stop_window = stop_window
        self.fresh = fresh
        self.max_restarts = max_restarts
        self.patience = patience
        self.min_drop = min_drop
        self.holdout = holdout
        self.checkpoint_interval = checkpoint_interval
        self.log_interval = log_interval
        self.alarm = alarm
        self.seed = seed
        # Not what decides speed, memory and messages alone.
        spared = ('batch_size', 'checkpoint_interval', 'log_interval')
        self._settings = {name: value for name, value in counts.items() if name not in spared}
        self._settings |= dict(optim_wrapper=self.optim_wrapper, seed=seed)
        self._settings |= dict(param_scheduler=self.param_scheduler, stop_loss=stop_loss)
        self._settings |= dict(max_restarts=max_restarts, min_drop=min_drop, fresh=fresh)
        if alarm is not None:
            self._settings |= dict(alarm=alarm.about())
        self._settings |= dict(feedback=[term.about() for term in self.feedback])
        self._settings = plain(self._settings)
        self.evaluator = PromptEvaluator(
            generator, target, sources, num_inference_steps, batch_size, seed
        )
        self._search_sources, self._held_out = {}, {}
        self._ahead: dict[tuple[str | int, ...], list[tuple[int, int]]] = {}
        self._scorer = SearchStep(
            generator, target, self.feedback, sources, num_inference_steps, batch_size
        )

    def run(
        self,
        prompts: Sequence[SoftPrompt],
        checkpoint: str | Path | None = None,
        bank: PromptBank | None = None,
    ) -> list[FoundPrompt]:
        """Search all ``prompts``; their embeddings are changed in place.

        Args:
            prompts: Where to start.
            checkpoint: File that the search saves itself to and goes on from. One of other
                prompts, settings, generator or target weights is not used, and the log says what
                differs; see :func:`~mmgap.search.checkpoint.load_search`.
            bank: Where the prompts go when they are found.

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
        states = [PromptProgress(prompt, prompt.embeddings.detach().clone()) for prompt in prompts]
        identity = (
            broadcast_object(self._identity(prompts)) if checkpoint or bank is not None else {}
        )
        with self.target.frozen():
            optimizer = build_optim_wrapper(nn.ModuleList(prompts), self.optim_wrapper)
            schedulers = [
                PARAM_SCHEDULERS.build({'by_epoch': False, 'optimizer': optimizer, **config})
                for config in self.param_scheduler
            ]
            parts = (states, optimizer, schedulers)
            saved = load_search(checkpoint, identity, *parts) if checkpoint else None
            if saved is not None:
                self._log(f'search goes on from {checkpoint}')
            if len(set(all_gather_list([self._progress(states)]))) > 1:
                raise ValueError(
                    f'not every process can read {checkpoint}, from which the search would go on; '
                    'the work directory must be on a file system that all of them see'
                )
            try:
                self._loop(states, optimizer, schedulers, checkpoint, identity)
                for prompt in prompts:
                    dist.broadcast(prompt.embeddings.data)
                found = self._all_evaluated(states)
            except NonFiniteLossError:
                for prompt in prompts if saves else ():
                    bank.add(prompt, dict(settings=self._settings, complete=False))
                raise
        for result in found if saves else ():
            about = dict(result.summary(self.sources.classes), settings=self._settings)
            about['generator'] = fingerprint((saved or identity)['generator'])
            bank.add(result.prompt, about)
        return found

    def try_out(self, prompts: Sequence[SoftPrompt]) -> None:
        """Send one image through the search, with every term that ever counts; change nothing.

        Each process of a distributed run has its own.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        prompt = prompts[0]
        seed = derive_seed(self.seed, 'try-out')
        source = int(self.sources.of_class(prompt.label)[0])
        starts = {term.start for term in self.feedback if term.weight > 0}
        with self.target.frozen():
            for step in sorted({0, *(start for start in starts if start < self.steps)}):
                state = PromptProgress(prompt, prompt.embeddings.detach().clone(), [0.0] * step)
                # One alone would be compiled for a batch of one.
                count = dist.get_world_size() * (2 if self.generator.compiled else 1)
                self._scorer([state], [Job(0, source, seed)] * count)

    def _all_evaluated(self, states: Sequence[PromptProgress]) -> list[FoundPrompt]:
        try:
            return [self._evaluated(state) for state in states]
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f'{error}. The search is complete: with another scheduler or eta of the generator, '
                'or num_inference_steps of the search, it goes on from here (--resume)'
            ) from error

    def _evaluated(self, state: PromptProgress) -> FoundPrompt:
        held_out = self._split(state.prompt.label)[1]
        found = self.evaluator.compare(state, held_out)
        return found if self.alarm is None else self.alarm.check(found, self.evaluator, held_out)

    def _loop(
        self,
        states: list[PromptProgress],
        optimizer: Any,
        schedulers: list[Any],
        checkpoint: str | Path | None,
        identity: Mapping[str, Any],
    ) -> None:
        started, first = time.time(), self._progress(states)
        while active := [state for state in states if not state.done]:
            for state, *scores in zip(active, *self._step(active), strict=True):
                self._take(state, optimizer, *scores)
            optimizer.step()
            optimizer.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
            step = self._progress(states)
            if step % self.log_interval == 0 or all(state.done for state in states):
                speed = (time.time() - started) / max(1, step - first)
                self._log_step(step, active, speed)
            over = all(state.done for state in states)
            due = over or step % self.checkpoint_interval == 0
            if checkpoint and due and dist.is_main_process():
                save_search(checkpoint, identity, states, optimizer, schedulers)

    def _take(
        self,
        state: PromptProgress,
        optimizer: Any,
        loss: float,
        attack: float,
        hit: float,
        gradient: Tensor,
    ) -> None:
        """Book one step of one prompt: stop it, start it again, or let the optimiser move it."""
        step = len(state.losses)
        if step & (step - 1) == 0:  # 0, 1, 2, 4, 8, …: most happens early
            state.snapshots[step] = state.prompt.embeddings.detach().clone()
        state.total += 1
        state.losses.append(loss)
        state.attacks.append(attack)
        state.hits.append(hit)
        if self._reached(state):
            state.done = True
        elif self._stuck(state) and state.restarts < self.max_restarts:
            self._restart(state, optimizer)
        else:
            state.prompt.embeddings.grad = gradient
            state.done = len(state.losses) >= self.steps

    def _reached(self, state: PromptProgress) -> bool:
        recent = state.attacks[-self.stop_window :]
        if self.stop_loss is None or len(recent) < self.stop_window:
            return False
        return sum(recent) / self.stop_window < self.stop_loss

    def _stuck(self, state: PromptProgress) -> bool:
        if len(state.losses) != self.patience:
            return False
        window = max(1, self.patience // 4)
        before, after = state.losses[:window], state.losses[-window:]
        before, after = sum(before) / window, sum(after) / window
        moved = before - after >= self.min_drop * abs(before)
        return not moved and sum(state.hits[-window:]) / window > 0.5

    def _restart(self, state: PromptProgress, optimizer: Any) -> None:
        state.restarts += 1
        prompt = state.prompt
        seed = derive_seed(self.seed, 'restart', prompt.id, state.restarts)
        again = self.generator.prompts.random_prompt(len(prompt.embeddings), seed, prompt.id)
        with torch.no_grad():
            prompt.embeddings.copy_(again.embeddings)
        dist.broadcast(prompt.embeddings.data)
        optimizer.optimizer.state.pop(prompt.embeddings, None)
        state.initial = prompt.embeddings.detach().clone()
        state.losses, state.attacks, state.hits, state.snapshots = [], [], [], {}
        self._log(f'{prompt.id} did not move and starts again ({state.restarts})')

    def _step(self, active: list[PromptProgress]) -> Scores:
        """Draw images with each active prompt and score them."""
        # The next step's are read meanwhile; a prompt that stops or starts again wastes a few.
        return self._scorer(active, self._jobs(active), self._jobs(active, ahead=1))

    def _jobs(self, active: Sequence[PromptProgress], ahead: int = 0) -> list[Job]:
        """The images of the step that comes after ``ahead`` others."""
        jobs, known = [], {}
        for place, state in enumerate(active):
            step = len(state.losses) + ahead if self.fresh else 0
            name = (state.prompt.id, state.restarts, step)
            known[name] = self._ahead.get(name) or self._choose(state.prompt.label, *name)
            jobs += [Job(place, source, seed) for source, seed in known[name]]
        self._ahead = known
        return jobs

    def _choose(self, label: int | None, *name: str | int) -> list[tuple[int, int]]:
        """Source and seed of each image of a prompt's step."""
        rng = derive_rng(self.seed, 'search', *name)
        pool, count = self._split(label)[0], self.images_per_prompt
        chosen = rng.choice(pool, count, replace=len(pool) < count).tolist()
        return list(zip(chosen, rng.integers(2**62, size=count).tolist(), strict=True))

    def _split(self, label: int | None) -> tuple[Any, Any]:
        """Sources to search with and held-out ones, of one class or of all."""
        if label not in self._search_sources:
            every = self.sources.of_class(label)
            order = derive_rng(self.seed, 'holdout', str(label)).permutation(every)
            held = min(self.holdout, len(order) // 3)
            if held == 0:
                self._log(f'class {label} has {len(order)} sources: they are held out, too')
            self._held_out[label] = order[:held] if held else order
            self._search_sources[label] = order[held:]
        return self._search_sources[label], self._held_out[label]

    def evaluate(self, prompt: SoftPrompt) -> dict[str, float]:
        """What the target makes of a prompt's images around the held-out sources of all classes.

        Returns:
            ``target_loss`` and ``accuracy``: means over the sources of the prompt's class, over all
            if it has none. ``crossed_target_loss`` and ``crossed_accuracy``: over all.

        Raises:
            NonFiniteLossError: If a loss is NaN or Inf.
        """
        held_out = np.concatenate([self._split(c)[1] for c in range(len(self.sources.classes))])
        with self.target.frozen():
            losses, hits = map(np.array, self.evaluator.ask(prompt, held_out))
        own = self.sources.labels[held_out] == prompt.label
        own = own if prompt.label is not None else np.ones_like(own)
        return dict(
            target_loss=float(losses[own].mean()),
            accuracy=float(hits[own].mean()),
            crossed_target_loss=float(losses.mean()),
            crossed_accuracy=float(hits.mean()),
        )

    def failure_rates(
        self, prompts: Sequence[SoftPrompt], label: int, critic: Critic | None = None
    ) -> list[float]:
        """How often the target fails on each prompt's images.

        Around as many sources of the class ``label`` as are held out, none of which is.
        """
        pool = self._split(label)[0][: self.holdout]
        return [self.evaluator.failure_rate(prompt, pool, critic) for prompt in prompts]

    def _identity(self, prompts: Sequence[SoftPrompt]) -> dict[str, Any]:
        """What decides the found prompts, as plain data."""
        about = dict(
            search=self._settings,
            prompts=[[p.id, p.label, p.template, p.joiner, p.number] for p in prompts],
            sources=fingerprint([self.sources.labels.tolist(), self.sources.unit]),
            initial=weights_fingerprint(nn.ModuleList(prompts)),
            generator=self.generator.about(),
            target=weights_fingerprint(self.target.model),
        )
        return plain(about)

    @staticmethod
    def _progress(states: list[PromptProgress]) -> int:
        """Steps of the search so far: all prompts that have not stopped have gone through them."""
        return max((state.total for state in states), default=0)

    def _log_step(self, step: int, active: list[PromptProgress], seconds: float) -> None:
        hub = MessageHub.get_current_instance()
        for state in active:
            if state.losses:
                hub.update_scalar(f'gap/loss/{state.prompt.id}', state.losses[-1])
        known = [state for state in active if state.losses]
        loss = sum(state.losses[-1] for state in known) / max(1, len(known))
        hits = [state.hits[-1] for state in known if state.hits[-1] == state.hits[-1]]
        accuracy = f', target accuracy {sum(hits) / len(hits):.2f}' if hits else ''
        terms = [f'{name} {sum(v) / len(v):.3f}' for name, v in self._scorer.means.items()]
        terms = f' ({", ".join(terms)})' if len(terms) > 1 else ''
        left = max(self.steps - len(state.losses) for state in active)
        self._log(
            f'search step {step}: {len(active)} prompts, loss {loss:.3f}{terms}{accuracy}, '
            f'{seconds:.2f} s a step, at most {left * seconds:.0f} s left'
        )

    @staticmethod
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
