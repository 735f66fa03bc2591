# SPDX-License-Identifier: Apache-2.0
"""Settings of a search: GAPHook's ``search``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# What decides speed, memory and messages alone; a search goes on with others.
SPEED = ('batch_size', 'checkpoint_interval', 'log_interval')
# Where prompts start.
START = ('prompts_per_class', 'tokens', 'grow', 'init', 'aim', 'scope', 'template')
SCOPES = ('class', 'all')
VOCABULARY = 'vocabulary'
ADAM = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))


@dataclass(frozen=True)
class SearchSettings:
    """Where prompts start, and how they are searched for.

    Attributes:
        prompts_per_class: Prompts for each class; with scope ``'all'`` as many in total as there
            would be for all classes, so that budgets compare.
        tokens: Tokens per prompt; a list is taken in turn.
        grow: Tokens that prompts gain with each round.
        init: ``'vocabulary'`` draws from the Gaussian of the vocabulary's embeddings; otherwise a
            prompt file, or words that every prompt starts with; both are repeated in turn to fill
            a prompt. A list of these is given to the prompts in turn, through all classes.
        aim: In [0, 1], the part of a class's prompts that share a list ``init`` by how often the
            target fails on its images (see :func:`~mmgap.search.allocation`); it costs ``holdout``
            images per start and class.
        scope: ``'class'`` searches each prompt on the sources of one class, ``'all'`` on all.
        template: Text around the tokens, see :class:`~mmgap.prompts.SoftPrompt`; ``{class}`` in it
            becomes the class name.
        steps: Steps per prompt. With 0 nothing is searched for: prompts are drawn as they start,
            at random or as ``init`` says, and evaluated.
        num_inference_steps: Denoising steps of an image.
        images_per_prompt: Images per prompt and step.
        batch_size: Images drawn at a time, by each process.
        optim_wrapper: Config of MMEngine's optimiser wrapper.
        rate: Learning rate in place of the optimiser's own, as a part of the standard deviation of
            the vocabulary's embeddings, so that it suits any text encoder (as in arXiv 2503.23573,
            where 0.1 takes 25 to 50 steps).
        param_scheduler: Configs of MMEngine's parameter schedulers, counted in steps.
        stop_loss: A prompt stops when its attack falls below this: the weighted sum of the terms
            that need the target, without guidance. It keeps the embeddings that reached it, those
            before that step's update.
        stop_window: Latest steps whose mean is compared with ``stop_loss``: with few images
            per step, a single one may be low by luck.
        fresh: Whether each step has its own sources and noise. With the same ones throughout, a
            prompt fits itself to these few images.
        max_restarts: How often a prompt that does not move may start again, from a draw of the
            vocabulary's Gaussian. By default 2, and 0 for prompts that start elsewhere: a restart
            would leave their start.
        patience: Steps after which a prompt is looked at for a restart.
        min_drop: Share of its loss that a prompt must have lost by then, unless the target already
            fails on most of its images.
        holdout: Sources of each class that are never searched with: found prompts are evaluated on
            them. As many of all sources together for prompts that belong to no class. With 0 no
            prompt is evaluated, which for many prompts costs more than their images.
        checkpoint_interval: Steps between two saves of the search.
        log_interval: Steps between two log lines.
        alarm: Arguments of :class:`~mmgap.search.AlignmentAlarm`, which sets a found prompt back
            to its last good step where it has left its class. None for no alarm.

    Raises:
        ValueError: If a setting is out of range, or they do not fit each other.
    """

    prompts_per_class: int = 4
    tokens: int | Sequence[int] = 5
    grow: int = 0
    init: str | Sequence[str] = VOCABULARY
    aim: float = 0.0
    scope: str = 'class'
    template: str = '{}'
    steps: int = 1000
    num_inference_steps: int = 5
    images_per_prompt: int = 4
    batch_size: int = 8
    optim_wrapper: dict[str, Any] | None = field(default_factory=lambda: dict(ADAM))
    rate: float | None = None
    param_scheduler: Sequence[dict[str, Any]] | None = ()
    stop_loss: float | None = None
    stop_window: int = 1
    fresh: bool = True
    max_restarts: int | None = None
    patience: int = 20
    min_drop: float = 0.1
    holdout: int = 16
    checkpoint_interval: int = 10
    log_interval: int = 10
    alarm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, default in (('optim_wrapper', ADAM), ('param_scheduler', ())):
            if not getattr(self, name):  # None and an empty one mean the default
                object.__setattr__(self, name, default)
        if self.steps < 0:
            raise ValueError(f'search steps must not be negative, got {self.steps}')
        counts = ('num_inference_steps', 'images_per_prompt', 'stop_window', 'patience')
        for name in (*counts, *SPEED):
            if getattr(self, name) < 1:
                raise ValueError(f'search {name} must be at least 1, got {getattr(self, name)}')
        if self.holdout < 0:
            raise ValueError(f'search holdout must not be negative, got {self.holdout}')
        if self.holdout == 0 and (self.aim or self.alarm is not None):
            raise ValueError(
                f'search holdout=0 evaluates no prompt, but aim={self.aim} and alarm={self.alarm} '
                'need it; give a positive holdout, or leave them out'
            )
        if self.prompts_per_class < 1 or not self.token_counts() or min(self.token_counts()) < 1:
            raise ValueError(
                'search prompts_per_class and tokens must be positive, got '
                f'{self.prompts_per_class} and {self.tokens}'
            )
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f'search rate must be positive, or None, got {self.rate}')
        if self.grow < 0:
            raise ValueError(f'search grow must not be negative, got {self.grow}')
        if self.scope not in SCOPES:
            raise ValueError(f'search scope must be one of {SCOPES}, got {self.scope!r}')
        if not self.starts:
            raise ValueError(
                'search init is an empty list; give words, prompt files or leave it out'
            )
        if self.scope == 'all' and '{class}' in self.template:
            raise ValueError(
                f"search template {self.template!r} names a class, which needs scope='class'"
            )
        self._check_aim()

    def _check_aim(self) -> None:
        if not 0 <= self.aim <= 1:
            raise ValueError(f'search aim must be in [0, 1], got {self.aim}')
        if not self.aim:
            return
        if isinstance(self.init, str) or VOCABULARY in self.init or self.scope != 'class':
            raise ValueError(
                "search aim needs a list init of words or prompt files, and scope='class'; got "
                f'init={self.init!r} and scope={self.scope!r}'
            )
        if not isinstance(self.tokens, int):
            raise ValueError(f'search aim needs one count of tokens, got {self.tokens}')

    @property
    def starts(self) -> list[str]:
        """``init`` as a list."""
        return [self.init] if isinstance(self.init, str) else list(self.init)

    @property
    def restarts(self) -> int:
        """``max_restarts``, with its default filled in."""
        if self.max_restarts is not None:
            return self.max_restarts
        return 2 if self.init == VOCABULARY else 0

    def token_counts(self, round_index: int = 0) -> list[int]:
        """``tokens`` of a round as a list."""
        counts = [self.tokens] if isinstance(self.tokens, int) else self.tokens
        return [count + self.grow * round_index for count in counts]

    def identity(self) -> dict[str, Any]:
        """What decides the found prompts, their starts apart, as plain data."""
        left_out = {*SPEED, *START, 'alarm'}
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        if self.rate is None:  # as in older versions
            del values['rate']
        schedulers = list(self.param_scheduler or ())
        return dict(values, param_scheduler=schedulers, max_restarts=self.restarts)
