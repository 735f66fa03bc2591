# SPDX-License-Identifier: Apache-2.0
"""What :mod:`mmgap.checks.cost` times: steps of a search and images, by mmgap and without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from mmgap.compat import differentiable_call
from mmgap.feedback import adversarial_loss
from mmgap.generators import GradientPolicy
from mmgap.loop import Loop
from mmgap.pool import SamplePool
from mmgap.registry import TASK_UTILS
from mmgap.search.progress import PromptProgress
from mmgap.search.step import SearchStep
from mmgap.sources import ImageSpec
from mmgap.targets import ClassOutput, TargetModel

BATCHES = 2  # of a measured synthesis


class Case:
    """Generator, target and prompts of a config, ready to be timed.

    Args:
        config: The config.
        searches: Whether search steps are timed; else images.
        stock: Whether sources are encoded anew each time, as the stock pipeline does.
    """

    def __init__(self, config: Config, searches: bool = True, stock: bool = False) -> None:
        self.loop = loop = Loop.from_config(config)
        loop.evaluation = []  # its data is not needed
        self.search_steps = loop.settings.search.num_inference_steps
        self.steps = loop.settings.synthesis.num_inference_steps
        self.images = (loop.settings.search if searches else loop.settings.synthesis).batch_size
        self._frozen = ExitStack()
        self.generator, self.encoder = loop.generator, loop.generator.prompts
        if stock:  # diffusers' own method, instead of the cache over it
            del self.generator.pipeline.vae.encode
        self.prompts = [
            self.encoder.random_prompt(5, seed=i, id=f'p{i}') for i in range(self.images)
        ]
        asking = [
            term
            for term in loop.settings.feedback
            if TASK_UTILS.build(dict(term)).needs == 'target'
        ]
        self.feedback = loop.variant(feedback=asking).feedback
        for term in self.feedback:
            term.start, term.end = 0, None

    @cached_property
    def target(self) -> TargetModel:
        """The model in training, frozen once and for all as in a search."""
        target = self.loop.target()
        self._frozen.enter_context(target.frozen())
        return target

    def search_step(self, number: int) -> list[Tensor]:
        """The gradient of a step of mmgap's search, each image of another prompt."""
        step = SearchStep(
            self.generator,
            self.target,
            self.feedback,
            self.loop.sources,
            self.search_steps,
            batch_size=self.images,
        )
        progress = [PromptProgress(p, p.embeddings.detach().clone()) for p in self.prompts]
        images, following = (
            [ImageSpec(source, i, i) for i, source in enumerate(self._sources(turn))]
            for turn in (number, number + 1)
        )
        return [score.gradient for score in step(progress, images, following)]

    def known_step(self, number: int) -> list[Tensor]:
        """A step whose sources have been seen before."""
        return self.search_step(0)

    def loop_step(self, number: int) -> list[Tensor]:
        """The same by the stock pipeline, its whole graph kept, for an attack that flips labels."""
        condition = self.loop.sources.load(self._sources(number)).to(self.generator.device)
        embeds = self.encoder.encode(self.prompts)
        call = differentiable_call(self.generator.pipeline)
        drawn = self._stock(call, condition, embeds, self.search_steps).float()
        images = torch.where(condition.masks, condition.images / 255, drawn)
        logits = cast(ClassOutput, self.target(images, condition.labels)).logits
        labels = condition.labels.to(logits.device)
        mode = 'flip' if logits.shape[1] == 2 else 'uniform'
        loss = adversarial_loss(logits, labels, mode).sum()
        return list(torch.autograd.grad(loss, [p.embeddings for p in self.prompts]))

    @torch.no_grad()
    def stock_images(self, number: int, folder: Path) -> None:
        """Images by the stock pipeline, as PNG."""
        condition = self.loop.sources.load(self._sources(number)).to(self.generator.device)
        embeds = self.encoder.encode(self.prompts)
        for batch in range(BATCHES):
            drawn = self._stock(
                self.generator.pipeline,
                condition,
                embeds,
                self.steps,
            )
            pixels = drawn.float().mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            for i, image in enumerate(pixels):
                Image.fromarray(image).save(folder / f'{number}-{batch}-{i}.png')

    def synthesis(self, number: int, folder: Path) -> None:
        """As many images by mmgap's synthesis, into a pool."""
        pool = SamplePool(folder / f'pool{number}')
        self.loop.synthesize(self.prompts, BATCHES * self.images, pool)

    def _sources(self, number: int) -> list[int]:
        first = number * self.images
        return [i % len(self.loop.sources) for i in range(first, first + self.images)]

    def _stock(
        self, call: Callable[..., Any], condition: Any, embeds: Tensor, steps: int
    ) -> Tensor:
        generator = self.generator
        with self._autocast():
            return call(
                prompt_embeds=embeds.to(generator.pipeline.unet.dtype),
                negative_prompt=[generator.negative_prompt] * len(condition),
                **generator.arguments(condition),
                height=generator.size[0],
                width=generator.size[1],
                num_inference_steps=steps,
                guidance_scale=generator.guidance_scale,
                eta=generator.eta,
                generator=[torch.Generator().manual_seed(i) for i in range(len(condition))],
                output_type='pt',
            ).images

    def floor_step(self, unet: nn.Module, decode: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Networks alone, forward and backward: what no search step can do without.

        UNet, VAE decoder and target on tensors of a step's shapes, in its number and memory
        formats; no scheduler, no noise, no text encoder, no sources.

        Args:
            unet: The UNet, or a compiled one.
            decode: The VAE's ``decode``, or a compiled one.
        """
        pipe, scale = self.generator.pipeline, self.generator.guidance_scale
        device, dtype = self.generator.device, pipe.unet.dtype
        height, width = (side // pipe.vae_scale_factor for side in self.generator.size)
        settings = dict(device=device, dtype=dtype)
        hidden = torch.randn(
            2 * self.images,
            pipe.tokenizer.model_max_length,
            pipe.unet.config.cross_attention_dim,
            requires_grad=True,
            **settings,
        )
        latents = torch.randn(self.images, 4, height, width, **settings)
        latents = latents.to(memory_format=torch.channels_last)
        # The mask and the masked image of a UNet with 9 input channels.
        beside = latents.new_zeros(2 * self.images, pipe.unet.config.in_channels - 4, height, width)
        labels = torch.zeros(self.images, dtype=torch.int64, device=device)
        with self._autocast():
            for step in range(self.search_steps):
                time_ = torch.full((), 999 - 999 * step // self.search_steps, device=device)
                given = torch.cat([torch.cat([latents, latents]), beside], dim=1)
                predicted = unet(given, time_, hidden, return_dict=False)[0]
                without, prompted = predicted.chunk(2)
                latents = 0.9 * latents - 0.1 * (without + scale * (prompted - without))
            images = decode(latents).float().clamp(0, 1)
            loss = self.target(images, labels).loss.sum()
        return list(torch.autograd.grad(loss, [hidden]))

    def against_the_floor(self, repeats: int, compiled: bool) -> dict[str, float]:
        """Seconds of the floor and of steps, in turn: medians, after two of each to warm up."""
        unet, vae = self.generator.pipeline.unet, self.generator.pipeline.vae

        def decode(latents: Tensor) -> Tensor:
            return vae.decode(latents, return_dict=False)[0]

        whole = unet
        if compiled:
            # Of its own: the step's blocks are compiled one by one.
            whole, decode = torch.compile(unet), torch.compile(decode)

        def step(checkpoint: bool | str) -> Callable[[], Any]:
            def run() -> Any:
                self.generator.gradient = GradientPolicy(checkpoint=checkpoint)
                return self.known_step(0)

            return run

        runs = dict(
            seconds=lambda: self.floor_step(whole, decode),
            step=step(False),
            checkpointed=step('steps'),
        )
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(repeats + 2):
            for name, run in runs.items():
                seconds = timed(run)
                if number >= 2:
                    taken[name].append(seconds)
        return {name: sorted(values)[len(values) // 2] for name, values in taken.items()}

    def host(self, repeats: int, known: bool) -> dict[str, float]:
        """Seconds that the CPU works in a step outside of networks and tensor operations.

        Text encoder, UNet, VAE and target are replaced by an operation or two of the same shapes,
        and from the time of a step that of all PyTorch's operators is taken off, as its profiler
        tells it. What is left: Python, choosing, reading, resizing and hashing sources, tokenising,
        and copies out of PyTorch.

        Args:
            repeats: Steps, of which the median counts, after two to warm up.
            known: Whether the sources of a step have been seen before.
        """
        from torch.profiler import ProfilerActivity, profile

        run = self.known_step if known else self.search_step
        with self._without_networks():
            for number in range(2):
                run(number)
            steps = []
            for number in range(2, repeats + 2):
                # Both from one step: a machine's speed drifts by more than their difference.
                with profile(activities=[ProfilerActivity.CPU]) as profiler:
                    whole = timed(partial(run, number))
                events = [e for e in profiler.key_averages() if e.key.startswith('aten::')]
                operators = sum(event.self_cpu_time_total for event in events) / 1e6
                steps.append((whole - operators, whole, operators))
        return dict(zip(('seconds', 'step', 'operators'), sorted(steps)[repeats // 2], strict=True))

    @contextmanager
    def _without_networks(self) -> Iterator[None]:
        pipe = self.generator.pipeline
        embed = pipe.text_encoder.get_input_embeddings()
        channels = pipe.vae.config.latent_channels

        def unet(sample: Tensor, time: Any, encoder_hidden_states: Tensor, **_: Any) -> Any:
            mean = encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1)
            return (sample[:, :channels] + mean,)

        def encoder(image: Tensor) -> Tensor:
            small = F.avg_pool2d(image, pipe.vae_scale_factor)[:, :1]
            return small.expand(-1, 2 * channels, -1, -1)

        def decoder(latents: Tensor, *_: Any) -> Tensor:
            return F.interpolate(latents[:, :3], scale_factor=pipe.vae_scale_factor)

        classes = self.target.model.head.num_classes

        def target(inputs: Tensor, mode: str) -> Tensor:
            return inputs.mean(dim=(2, 3))[:, :1] * torch.arange(classes, device=inputs.device)

        instead = {
            pipe.unet: unet,
            pipe.vae.encoder: encoder,
            pipe.vae.decoder: decoder,
            pipe.text_encoder: lambda ids, **_: (embed(ids),),
            self.target.model: target,
        }
        for name in ('quant_conv', 'post_quant_conv'):
            if getattr(pipe.vae, name, None) is not None:
                instead[getattr(pipe.vae, name)] = lambda sample: sample
        with ExitStack() as stack:
            for network, forward in instead.items():
                network.forward = forward
                stack.callback(network.__dict__.pop, 'forward')
            yield

    def _autocast(self) -> Any:
        generator = self.generator
        enabled = generator.autocast is not None
        return torch.autocast(generator.device.type, generator.autocast, enabled=enabled)


def timed(run: Callable[[], Any]) -> float:
    """Seconds that something takes, a GPU's part in it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
