# The same with a GAPHook, by read_base.
from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from torch.optim import Adam

from mmgap.feedback import AdversarialLoss
from mmgap.generators import InpaintingGenerator
from mmgap.hooks import GAPHook

with read_base():
    from .new_style import *  # noqa: F403

custom_hooks = [
    dict(
        type=GAPHook,
        generator=dict(type=InpaintingGenerator, model=''),
        feedback=[dict(type=AdversarialLoss, mode='flip')],
        search=dict(
            prompts_per_class=1,
            tokens=2,
            steps=2,
            num_inference_steps=2,
            images_per_prompt=2,
            batch_size=4,
            holdout=2,
            optim_wrapper=dict(type=OptimWrapper, optimizer=dict(type=Adam, lr=0.1)),
        ),
        synthesis=dict(num_inference_steps=2, batch_size=4),
        start=1,
        budget=4,
    )
]
