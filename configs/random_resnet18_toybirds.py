# Random prompts on the embedded world, without a search: each image has a draw from the Gaussian of
# the vocabulary as its prompt. The cheapest method; images enter by a refit.
_base_ = ['gap_resnet18_toybirds.py']

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        search=dict(steps=0, prompts_per_class=50, tokens=5, holdout=0),
        synthesis=dict(num_inference_steps=10, batch_size=40),
        injection=dict(mode='refit', steps=20),
        start=3,
        budget=100,
    )
]
