# SPDX-License-Identifier: Apache-2.0
"""What generators have in common: a stock diffusers pipeline, differentiable in its prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmgap.compat import (
    differentiable_call,
    keep_ddim_finite,
    keep_device_known,
    keep_timesteps_on_cpu,
)
from mmgap.configs import refuse_old_names
from mmgap.files import fingerprint, weights_fingerprint
from mmgap.generators.compilation import compile_blocks
from mmgap.generators.denoising import denoising_loss
from mmgap.generators.evaluations import Evaluations
from mmgap.generators.gradient import GradientPolicy
from mmgap.generators.loading import device_of, dtype_of
from mmgap.generators.lora import LoRA, merge_lora
from mmgap.generators.patching import patched
from mmgap.generators.posterior_cache import PosteriorCache
from mmgap.generators.schedulers import (
    SchedulerError,
    build_scheduler,
    check_scheduler,
    check_steps,
)
from mmgap.generators.steering import Steering, check_followed
from mmgap.prompts import PromptEncoder, PromptEncoderPair
from mmgap.sources import Condition, Sources
from mmgap.typed import checked


class DiffusionGenerator:
    """A stock diffusers pipeline: a plain one given the same arguments draws the same image.

    What is added: gradient to the prompt, and the arguments made from a condition.

    Args:
        pipeline: A Stable Diffusion pipeline, also of XL, in evaluation as it comes.
        name: What it was loaded from, for messages.
        size: Height and width in pixels, an int for both. By default the model's own.
        guidance_scale: Weight of classifier-free guidance; 1 or less switches it off.
        strength: In (0, 1]; below 1 the source shines through.
        eta: DDIM's noise, 0 to 1; schedulers that take none draw without, and a warning says so.
        negative_prompt: What classifier-free guidance leads away from. None leaves that to the
            model: zeros for most of Stable Diffusion XL (``force_zeros_for_empty_prompt``),
            otherwise the empty sentence.
        scheduler: Config of another scheduler, e.g. ``dict(type='DDIMScheduler')``; what it does
            not name is taken from the model's own. It must know the noise that the model was
            trained on and what the model predicts; see :mod:`mmgap.generators.schedulers`.
        lora: LoRA weights on top: a folder, file or hub id, or
            ``dict(path=…, scale=1.0, weight_name=…)``, or a list of these, as kohya-ss, diffusers
            and PEFT save them. They are merged into the model's own.
        gradient: Arguments of :class:`~mmgap.generators.gradient.GradientPolicy`.
        autocast: Dtype of matrix products and convolutions and their weights, ``'bfloat16'`` or
            ``'float16'``: 1.5 to 2 times faster on CPUs that have it. Latents and norms stay in the
            model's dtype.
        compile: Whether to compile the blocks of UNet, ControlNet and VAE decoder: the first steps
            take minutes, the others less time. Where PyTorch cannot compile, a warning says so.
        device: Where it runs; by default MMEngine's device.

    Attributes:
        home: That device.
        device: Where it is now; see :meth:`to`.
        compiled: Whether its blocks are compiled.
        evaluations: Counts what is drawn, see :class:`~mmgap.generators.evaluations.Evaluations`.

    Raises:
        FileNotFoundError: If there are no such LoRA weights.
        ValueError: If a setting is out of range, the scheduler cannot draw with the model, LoRA
            weights do not fit the model, or its two tokenizers do not fit each other.
    """

    # Networks called once per denoising step, in the pipeline's names.
    denoisers: ClassVar[tuple[str, ...]] = ('unet',)
    # Config of the critic of a run that names none.
    critic: ClassVar[dict[str, Any] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_old_names(cls, about='settings')

    def __init__(
        self,
        pipeline: Any,
        name: str,
        size: int | tuple[int, int] | None = None,
        guidance_scale: float = 7.0,
        strength: float = 1.0,
        eta: float = 0.0,
        negative_prompt: str | None = None,
        scheduler: dict[str, Any] | None = None,
        lora: str | dict[str, Any] | Sequence[str | dict[str, Any]] | None = None,
        gradient: dict[str, Any] | None = None,
        autocast: str | None = None,
        compile: bool = False,
        device: str | None = None,
    ) -> None:
        from mmengine.device import get_device

        self._name = name
        self._posteriors: PosteriorCache | None = None
        self.guidance_scale = guidance_scale
        self.strength = strength
        self.eta = eta
        # For most models None is the empty sentence.
        zeros = pipeline.config.get('force_zeros_for_empty_prompt', False)
        self.negative_prompt = negative_prompt if zeros else negative_prompt or ''
        self.gradient = GradientPolicy(**checked(GradientPolicy, gradient or {}))
        self.home = self.device = device_of(device or get_device())
        self.autocast = dtype_of(autocast, 'autocast') if autocast else None
        self.pipeline = pipe = pipeline.to(self.device)
        pipe.set_progress_bar_config(disable=True)
        keep_device_known(pipe)
        self._dtype = pipe.unet.dtype  # finding it takes a walk through all modules
        self._set_scheduler(scheduler)
        for one in LoRA.named(lora):
            merge_lora(pipe, one)
        for network in self._networks():
            network.requires_grad_(False).eval()
        if self.autocast is not None:
            # Else the VAE of XL goes back to float32 where it encodes, as one in float16 must.
            pipe.vae.register_to_config(force_upcast=False)
        for network in (*self._denoisers(), pipe.vae):
            if pipe.unet.dtype != torch.float64:
                network.to(memory_format=torch.channels_last)
            if self.autocast is not None:
                cast_once(network, self.autocast)
        # Before checkpointing is put around the blocks.
        self.compiled = compile and compile_blocks(
            [*self._denoisers(), pipe.vae.decoder], self.device
        )
        self.gradient.prepare([*self._denoisers(), pipe.vae])
        self.evaluations = Evaluations(self._denoisers(), pipe.vae, guided=self._guided)
        own_size = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self.size = (size, size) if isinstance(size, int) else tuple(size or (own_size, own_size))
        step = pipe.vae_scale_factor
        if any(side < step or side % step for side in self.size):
            raise ValueError(f'size={self.size} must be multiples of {step} for {name!r}')
        self.prompts: PromptEncoder | PromptEncoderPair
        if len(self._text_encoders()) == 1:
            self.prompts = PromptEncoder(pipe.tokenizer, pipe.text_encoder)
        else:
            self.prompts = PromptEncoderPair(
                pipe.tokenizer, pipe.text_encoder, pipe.tokenizer_2, pipe.text_encoder_2
            )
        self._negative: Tensor | None = None

    @staticmethod
    def check_settings(
        strength: float,
        eta: float,
        dtype: str,
        autocast: str | None = None,
        lora: Any = None,
        **others: Any,
    ) -> torch.dtype:
        """Before anything is loaded.

        Returns:
            The dtype of that name.

        Raises:
            TypeError: If ``lora`` is not made as it must be.
            ValueError: If a setting is out of range, or no dtype; lists those there are.
        """
        LoRA.named(lora)
        if autocast:
            dtype_of(autocast, 'autocast')
        if not 0 < strength <= 1:
            raise ValueError(f'strength must be in (0, 1], got {strength}')
        if not 0 <= eta <= 1:
            raise ValueError(f'eta must be in [0, 1], got {eta}')
        return dtype_of(dtype, 'dtype')

    def check_steps(self, num_inference_steps: int, stage: str = '') -> None:
        """See whether the scheduler can draw with a number of steps, before anything is drawn.

        Args:
            num_inference_steps: The number.
            stage: Whose number it is, for messages: ``'search'``.

        Raises:
            ValueError: If no denoising step is left at this strength, or the scheduler's arithmetic
                is not finite; names the schedulers that can.
        """
        if int(num_inference_steps * self.strength) < 1:
            raise ValueError(
                f'{stage} num_inference_steps={num_inference_steps} at strength={self.strength} '
                'leaves no denoising step'.lstrip()
            )
        if num_inference_steps in self._checked_steps:
            return
        try:
            check_steps(
                self.pipeline.scheduler,
                self._schedule,
                num_inference_steps,
                strength=self.strength,
                eta=self.eta,
            )
        except SchedulerError as error:
            raise SchedulerError(f'{stage}: {error}' if stage else str(error)) from error
        self._checked_steps.add(num_inference_steps)

    def sources(self, dataset: Any) -> Sources:
        """The dataset's samples as conditions of this generator."""
        raise NotImplementedError(f'{type(self).__name__} takes no sources')

    def arguments(self, condition: Condition) -> dict[str, Any]:
        """Arguments of the pipeline for a condition."""
        raise NotImplementedError(f'{type(self).__name__} takes no conditions')

    def __call__(
        self,
        condition: Condition,
        prompt_embeds: Tensor,
        seeds: Sequence[int],
        num_inference_steps: int,
        steering: Steering | None = None,
    ) -> Tensor:
        """Draw images.

        Gradient reaches ``prompt_embeds`` when gradients are enabled, as the policy says.

        Args:
            condition: ``B`` sources of the generator's size.
            prompt_embeds: ``(B, length, width)``, hidden states from :attr:`prompts`.
            seeds: One seed per image; an image depends on its own seed only.
            num_inference_steps: Denoising steps of the full chain; at ``strength`` below 1 only
                that share of them runs.
            steering: Moves the latents on their way.

        Returns:
            ``(B, 3, H, W)`` RGB in [0, 1].
        """
        condition = condition.to(self.device)
        with self._steered(steering, condition, num_inference_steps):
            return self.finish(
                self.draw(condition, prompt_embeds, seeds, num_inference_steps), condition
            )

    def finish(self, images: Tensor, condition: Condition) -> Tensor:
        """What becomes of the images that the pipeline draws: nothing, here.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1].
            condition: Theirs, on the same device.
        """
        return images

    def _steered(
        self, steering: Steering | None, condition: Condition, num_inference_steps: int
    ) -> AbstractContextManager[None]:
        if steering is None:
            return nullcontext()
        check_followed(self.pipeline.scheduler)
        calls = self._num_calls(num_inference_steps)
        return steering.applied(self.pipeline, calls, lambda images: self.finish(images, condition))

    def draw(
        self,
        condition: Condition,
        prompt_embeds: Tensor,
        seeds: Sequence[int],
        num_inference_steps: int,
    ) -> Tensor:
        """What the pipeline itself draws. Arguments as in :meth:`__call__`.

        Raises:
            ValueError: If the batch sizes differ, the condition has another size than the
                generator, or the scheduler cannot draw with so many steps at this strength.
        """
        if not len(condition) == len(prompt_embeds) == len(seeds):
            raise ValueError(
                f'{len(condition)} sources, {len(prompt_embeds)} prompts and {len(seeds)} seeds '
                'were given; there must be one of each per image'
            )
        if tuple(condition.images.shape[-2:]) != self.size:
            raise ValueError(
                f'the condition is {tuple(condition.images.shape[-2:])}, the generator draws '
                f'{self.size}'
            )
        self.check_steps(num_inference_steps)
        pipe, batch = self.pipeline, len(condition)
        dtype = self._dtype
        prompted = self.prompts.arguments(prompt_embeds.to(self.device, dtype))
        negative = self._negative_embeds().expand(batch, -1, -1).to(dtype)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        arguments = dict(
            self.arguments(condition.to(self.device)),
            height=self.size[0],
            width=self.size[1],
            num_inference_steps=num_inference_steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            generator=generators,
            output_type='pt',
            **prompted,
            **{f'negative_{k}': v for k, v in self.prompts.arguments(negative).items()},
        )
        with self._autocast(), self._remembering(condition, generators):
            if not torch.is_grad_enabled():
                return pipe(**arguments).images
            calls = self._num_calls(num_inference_steps)
            with self.gradient.applied(self._denoisers(), pipe.vae.decoder, calls, self._guided):
                return differentiable_call(pipe)(**arguments).images

    def to(self, device: str | torch.device) -> None:
        """Move weights, and what is remembered of sources, to another device."""
        self.device = torch.device(device)
        self.pipeline.to(self.device)
        if self._negative is not None:
            self._negative = self._negative.to(self.device)
        if self._posteriors is not None:
            self._posteriors.to(self.device)

    def memory(self) -> int:
        """Bytes of the weights and of what is remembered of sources."""
        weights = [p for network in self._networks() for p in network.parameters()]
        remembered = [] if self._posteriors is None else self._posteriors.tensors()
        return sum(tensor.nbytes for tensor in (*weights, *remembered))

    def denoising_loss(self, images: Tensor, prompt_embeds: Tensor, seeds: Sequence[int]) -> Tensor:
        """``(B,)``: how badly prompts explain images; see :mod:`mmgap.generators.denoising`."""
        with self._autocast(), patched(self.evaluations, 'guided', False):
            embeds = self.prompts.arguments(prompt_embeds)
            return denoising_loss(self.pipeline, images, seeds, **embeds)

    def fingerprint(self) -> str:
        """Sixteen hex digits that name weights and settings: equal ones draw equal images."""
        return fingerprint(self.settings())

    def settings(self) -> dict[str, Any]:
        """What decides an image, as plain data."""
        pipe = self.pipeline
        return dict(
            pipeline=type(pipe).__name__,
            scheduler=[type(pipe.scheduler).__name__, _settled(pipe.scheduler.config)],
            weights=[weights_fingerprint(network) for network in self._networks()],
            size=self.size,
            guidance_scale=self.guidance_scale,
            strength=self.strength,
            eta=self.eta,
            negative_prompt=self.negative_prompt,
            dtypes=[str(pipe.unet.dtype), str(self.autocast)],
        )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(model={self._name!r}, size={self.size})'

    def _set_scheduler(self, config: dict[str, Any] | None) -> None:
        """Give the pipeline the scheduler of a config, or its own, if it can draw."""
        current = self.pipeline.scheduler
        # How the model was trained. It may say so wrongly, which the config then corrects.
        self._schedule = {**dict(current.config), **(config or {})}
        self._checked_steps: set[int] = set()
        scheduler = build_scheduler(current, config or {})
        keep_ddim_finite(scheduler, self.eta)
        check_scheduler(scheduler, self._schedule, self.strength, self.eta)
        if self.eta > 0 and 'eta' not in inspect.signature(scheduler.step).parameters:
            MMLogger.get_current_instance().warning(
                f'[gap] {type(scheduler).__name__} takes no eta: eta={self.eta} of the generator '
                "does nothing; take scheduler=dict(type='DDIMScheduler') for it, or eta=0"
            )
        keep_timesteps_on_cpu(scheduler, self._denoisers())
        self.pipeline.scheduler = scheduler

    @property
    def _guided(self) -> bool:
        """Whether classifier-free guidance draws with and without the prompt."""
        distilled = self.pipeline.unet.config.time_cond_proj_dim is not None
        return self.guidance_scale > 1 and not distilled

    def _denoisers(self) -> list[Any]:
        return [getattr(self.pipeline, name) for name in self.denoisers]

    def _text_encoders(self) -> list[Any]:
        second = getattr(self.pipeline, 'text_encoder_2', None)
        return [self.pipeline.text_encoder, *([] if second is None else [second])]

    def _networks(self) -> list[Any]:
        return [*self._text_encoders(), *self._denoisers(), self.pipeline.vae]

    def _remembering(
        self, condition: Condition, generators: Sequence[torch.Generator]
    ) -> AbstractContextManager[None]:
        if self._posteriors is None:
            return nullcontext()
        return self._posteriors.of(condition.names, generators)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def _num_calls(self, num_inference_steps: int) -> int:
        pipe = self.pipeline
        pipe.scheduler.set_timesteps(num_inference_steps, device=self.device)
        if not hasattr(pipe, 'get_timesteps'):  # it always begins at pure noise
            return len(pipe.scheduler.timesteps)
        return len(pipe.get_timesteps(num_inference_steps, self.strength, self.device)[0])

    @torch.no_grad()
    def _negative_embeds(self) -> Tensor:
        if self._negative is None:
            self._negative = self.prompts.encode_text([self.negative_prompt or ''])
            if self.negative_prompt is None:
                self._negative = torch.zeros_like(self._negative)
        return self._negative


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of diffusers, the same in each process: it lists defaults in a set's order."""
    settings = dict(config)
    if '_use_default_values' in settings:
        settings['_use_default_values'] = sorted(settings['_use_default_values'])
    return settings


def cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights as autocast would, which does it anew in each call where they are frozen.

    Each of these copies would stay in the graph until the backward pass. The first parameter stays,
    by which diffusers knows a network's dtype.

    Args:
        network: A frozen model of diffusers, changed in place; it works under autocast alone then.
        dtype: Autocast's.
    """
    first = next(network.parameters())
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for parameter in module.parameters(recurse=False):
                if parameter is not first:
                    parameter.data = parameter.data.to(dtype)
