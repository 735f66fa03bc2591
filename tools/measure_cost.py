#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what a search step and an image of a config cost on this machine.

Time and peak memory of a step of the search, by how the gradient goes back through the denoising
chain and by number format, beside a plain loop that keeps the whole graph of the stock pipeline
and encodes sources and negative prompt anew; and images per second of the synthesis beside the
stock pipeline. Generator, target, feedback and batch sizes are the config's; its data is not
needed: sources are birds of the embedded world, and terms of guidance are left out. Each case runs
in a process of its own.

``--random FOLDER`` measures without weights: a Stable Diffusion 1.5 of random weights, in its real
layer sizes, is written there. ``--cfg-options custom_hooks.0.search.batch_size=1`` changes the
config. Writes ``OUT/results.json`` and ``OUT/results.md``; cases that are in it already are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from check import without_pretrained
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from PIL import Image
from random_sd15 import random_pipeline
from torch import Tensor
from tqdm import tqdm

from mmgap.compat import differentiable_call
from mmgap.feedback import adversarial_loss
from mmgap.files import fingerprint, write_bytes, write_json
from mmgap.hooks.components import Components, prepare_feedback, split_search
from mmgap.hooks.summary import environment
from mmgap.machine import device_name, memory, peak, reset_peak
from mmgap.search.scorer import Job, Scorer
from mmgap.search.state import SearchState
from mmgap.synthesis import SamplePool

LOOP, STOCK, SYNTHESIS = 'plain loop', 'stock pipeline', 'synthesis'
# Of a search step: arguments of GradientPolicy.
GRADIENTS: dict[str, dict[str, Any]] = {
    'full': dict(mode='full'),
    'full, steps checkpointed': dict(mode='full', checkpoint='steps'),
    'full, blocks checkpointed': dict(mode='full', checkpoint='blocks'),
    'last_k, k=2': dict(mode='last_k', k=2),
    'last_k, k=2, blocks checkpointed': dict(mode='last_k', k=2, checkpoint='blocks'),
    'shortcut': dict(mode='shortcut'),
    'shortcut, blocks checkpointed': dict(mode='shortcut', checkpoint='blocks'),
}
CASES = (LOOP, *GRADIENTS, STOCK, SYNTHESIS)
# Of weights and of matrix products.
FORMATS: dict[str, dict[str, Any]] = {
    'float32': dict(dtype='float32', autocast=None),
    'autocast': dict(dtype='float32', autocast='bfloat16'),
    'bfloat16': dict(dtype='bfloat16', autocast=None),
}
BATCHES = 2  # of a measured synthesis
OUT_OF_MEMORY = 'out of memory'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file with an InpaintingGenerator')
    parser.add_argument('--random', type=Path, metavar='FOLDER', help='random weights, kept there')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=CASES)
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=list(FORMATS))
    parser.add_argument('--repeats', type=int, default=3, help='measured, after one to warm up')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value …')
    parser.add_argument('--only', nargs=2, help=argparse.SUPPRESS)  # one case, in this process
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f'--repeats must be at least 1, got {args.repeats}')
    return args


def load(args: argparse.Namespace) -> Config:
    """The config with sources that need no files, and no weights of the target's.

    Raises:
        SystemExit: If it has no GAPHook with an InpaintingGenerator.
    """
    config = Config.fromfile(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    kinds = [hook.get('generator', {}).get('type') for hook in config.get('custom_hooks', ())]
    if kinds.count('mmgap.InpaintingGenerator') != 1:
        raise SystemExit(
            f'{args.config} must have one GAPHook with an mmgap.InpaintingGenerator, and has '
            f'{kinds}'
        )
    hook = config.custom_hooks[kinds.index('mmgap.InpaintingGenerator')]
    config.custom_hooks = [hook]
    config.train_dataloader.dataset = dict(type='mmgap.ToyBirds', split='train', size=512)
    config.model = without_pretrained(config.model)
    config.load_from = None
    hook.critic = False
    for name in ('gradient', 'dtype', 'autocast'):  # each case has its own
        hook.generator.pop(name, None)
    if args.random is not None:  # its tokenizer knows few words; the cost is that of a sentence
        hook.generator.update(model=str(args.random), negative_prompt='', lora=None)
        if not (args.random / 'model_index.json').exists():
            temporary = args.random.with_name(f'.{args.random.name}.tmp')
            random_pipeline().to(torch.float16).save_pretrained(temporary)
            temporary.replace(args.random)
    return config


class Case:
    """One case, ready to be timed."""

    def __init__(self, config: Config, case: str) -> None:
        self.parts = parts = Components(config)
        search, synthesis = split_search(parts.hook.search_cfg)[1], parts.hook.synthesis_cfg
        self.search_steps = search.get('num_inference_steps', 5)
        self.steps = synthesis.get('num_inference_steps', 15)
        searches = case not in (STOCK, SYNTHESIS)
        self.images = (search if searches else synthesis).get('batch_size', 8)
        self.target = parts.target() if searches else None
        self.generator, self.encoder = parts.generator, parts.generator.prompts
        if case in (LOOP, STOCK):
            # What encodes sources anew: diffusers' own method, instead of the cache over it.
            del self.generator.pipeline.vae.encode
        self.prompts = [
            self.encoder.random_prompt(5, seed=i, id=f'p{i}') for i in range(self.images)
        ]
        self.feedback = [term for term in parts.hook.feedback if term.needs == 'target']
        prepare_feedback(self.feedback, self.generator, parts.sources.classes, [])
        for term in self.feedback:
            term.start, term.end = 0, None

    def search_step(self, number: int) -> list[Tensor]:
        """The gradient of a step of mmgap's search, each image of another prompt."""
        terms = (self.feedback, self.parts.sources, self.search_steps, self.images)
        scorer = Scorer(self.generator, self.target, *terms)
        states = [SearchState(p, p.embeddings.detach().clone()) for p in self.prompts]
        jobs = [Job(i, source, i) for i, source in enumerate(self._sources(number))]
        with self.target.frozen():
            return scorer(states, jobs).gradients

    def loop_step(self, number: int) -> list[Tensor]:
        """The same by the stock pipeline, its whole graph kept, for an attack that flips labels."""
        condition = self.parts.sources.load(self._sources(number)).to(self.generator.device)
        embeds = self.encoder.encode(self.prompts)
        call = differentiable_call(self.generator.pipeline)
        drawn = self._stock(call, condition, embeds, self.search_steps).float()
        images = torch.where(condition.masks, condition.images / 255, drawn)
        with self.target.frozen():
            labels = condition.labels
            logits = self.target(images, labels).logits
            mode = 'flip' if logits.shape[1] == 2 else 'uniform'
            loss = adversarial_loss(logits, labels, mode).sum()
            return list(torch.autograd.grad(loss, [p.embeddings for p in self.prompts]))

    @torch.no_grad()
    def stock_images(self, number: int, folder: Path) -> None:
        """Images by the stock pipeline, as PNG."""
        condition = self.parts.sources.load(self._sources(number)).to(self.generator.device)
        embeds = self.encoder.encode(self.prompts)
        for batch in range(BATCHES):
            drawn = self._stock(self.generator.pipeline, condition, embeds, self.steps)
            drawn = drawn.float().mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            for i, image in enumerate(drawn):
                Image.fromarray(image).save(folder / f'{number}-{batch}-{i}.png')

    def synthesis(self, number: int, folder: Path) -> None:
        """As many images by mmgap's synthesis, into a pool."""
        pool = SamplePool(folder / f'pool{number}')
        self.parts.synthesizer().run(self.prompts, BATCHES * self.images, pool)

    def _sources(self, number: int) -> list[int]:
        first = number * self.images
        return [i % len(self.parts.sources) for i in range(first, first + self.images)]

    def _stock(
        self, call: Callable[..., Any], condition: Any, embeds: Tensor, steps: int
    ) -> Tensor:
        generator = self.generator
        with torch.autocast(
            generator.device.type, generator.autocast, enabled=generator.autocast is not None
        ):
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


def measure(config: Config, case: str, numbers: str, repeats: int) -> dict[str, Any]:
    """Seconds and peak bytes of one case; one run before warms up."""
    changes = dict(FORMATS[numbers], gradient=GRADIENTS.get(case, {}))
    autocast = changes.pop('autocast')
    stock = case in (
        LOOP,
        STOCK,
    )  # which has autocast around it, and weights that know nothing of it
    config.custom_hooks[0].generator.update(changes, autocast=None if stock else autocast)
    ready = Case(config, case)
    ready.generator.autocast = getattr(torch, autocast) if autocast else None
    with tempfile.TemporaryDirectory() as folder:
        run = {
            LOOP: ready.loop_step,
            STOCK: lambda number: ready.stock_images(number, Path(folder)),
            SYNTHESIS: lambda number: ready.synthesis(number, Path(folder)),
        }.get(case, ready.search_step)
        seconds, bytes_ = [], []
        for number in range(repeats + 1):
            reset_peak()
            began = time.perf_counter()
            run(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            bytes_.append(peak())
    return dict(
        size=list(ready.generator.size),
        images=ready.images * (BATCHES if case in (STOCK, SYNTHESIS) else 1),
        seconds=statistics.median(seconds[1:]),
        slowest=max(seconds[1:]),
        peak=max(bytes_[1:]),
    )


def only(args: argparse.Namespace) -> None:
    """Measure one case and print it as JSON; used up memory ends it, not the machine."""
    if not torch.cuda.is_available() and sys.platform == 'linux':
        import resource

        limit = int(0.92 * memory())
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    MMLogger.get_instance('mmgap', log_level='ERROR')
    try:
        row = measure(load(args), *args.only, args.repeats)
    except (torch.OutOfMemoryError, MemoryError):
        row = dict(failed=OUT_OF_MEMORY)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        row = dict(failed=OUT_OF_MEMORY)
    print(json.dumps(row))


def in_a_process(args: argparse.Namespace, case: str, numbers: str) -> dict[str, Any]:
    """What :func:`only` finds.

    Raises:
        SystemExit: If it failed for another reason than memory.
    """
    command = [sys.executable, __file__, *sys.argv[1:], '--only', case, numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -9:  # by a system that had no more to give
        return dict(failed=OUT_OF_MEMORY)
    if done.returncode:
        raise SystemExit(f'{done.stderr}\n{case} in {numbers} failed: see above')
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows = results['rows']
    searches = [row for row in rows if row['case'] not in (STOCK, SYNTHESIS)]
    draws = [row for row in rows if row['case'] in (STOCK, SYNTHESIS)]
    about = results['about']
    size = next(
        (f'{row["size"][0]}x{row["size"][1]} pixels, ' for row in rows if 'size' in row), ''
    )
    lines = [
        f'# {about["device"]}',
        '',
        f'`{about["config"]}`{about["changes"]}; {about["weights"]}, {size}median of '
        f'{about["repeats"]} after one to warm up. Memory is the peak of {about["memory"]}.',
        '',
    ]
    if searches:
        steps = about['search_steps']
        lines += [
            f'A search step, {steps} denoising steps:',
            '',
            '| gradient | numbers | batch | s/step | s/image | GiB |',
            '|---|---|---|---|---|---|',
            *(line(row, row.get('seconds', 0) / row.get('images', 1)) for row in searches),
            '',
        ]
    if draws:
        lines += [
            f'Synthesis, {about["steps"]} denoising steps, images as PNG on the disk:',
            '',
            '| | numbers | images | s | images/s | GiB |',
            '|---|---|---|---|---|---|',
            *(line(row, row.get('images', 0) / row.get('seconds', 1)) for row in draws),
            '',
        ]
    return '\n'.join(lines)


def line(row: dict[str, Any], rate: float) -> str:
    """A row of a table."""
    start = f'| {row["case"]} | {row["numbers"]} |'
    if 'failed' in row:
        return f'{start} {row["failed"]} | | | |'
    taken = f'{row["peak"] / 2**30:.1f}' if row['peak'] else ''
    return f'{start} {row["images"]} | {row["seconds"]:.3g} | {rate:.3g} | {taken} |'


def describe(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """What was measured, and on what."""
    hook = config.custom_hooks[0]
    gpu = torch.cuda.is_available()
    changes = ', '.join(f'`{k}={v}`' for k, v in (args.cfg_options or {}).items())
    return dict(
        device=device_name(),
        config=args.config,
        changes=f' with {changes}' if changes else '',
        weights='random weights' if args.random else str(hook.generator.model),
        search_steps=(hook.get('search') or {}).get('num_inference_steps', 5),
        steps=(hook.get('synthesis') or {}).get('num_inference_steps', 15),
        repeats=args.repeats,
        memory="the GPU's allocations" if gpu else 'the process, PyTorch itself in it',
        environment=environment({}),
    )


def main() -> None:
    args = parse_args()
    if args.only:
        only(args)
        return
    config = load(args)
    about = describe(args, config)
    key = fingerprint([about, config.custom_hooks, config.model])
    file, rows = args.out / 'results.json', []
    if file.exists():
        before = json.loads(file.read_text())
        if before['key'] != key:
            raise SystemExit(f'{file} was measured with other settings; give another --out')
        rows = before['rows']
    wanted = [(case, numbers) for numbers in args.formats for case in args.cases]
    wanted = [w for w in wanted if w not in [(row['case'], row['numbers']) for row in rows]]
    for case, numbers in tqdm(wanted, desc='cases'):
        row = dict(case=case, numbers=numbers, **in_a_process(args, case, numbers))
        rows.append(row)
        rows.sort(key=lambda r: (CASES.index(r['case']), list(FORMATS).index(r['numbers'])))
        results = dict(key=key, about=about, rows=rows)
        write_json(file, results)
        write_bytes(args.out / 'results.md', table(results).encode())
    print(table(dict(about=about, rows=rows)))


if __name__ == '__main__':
    main()
