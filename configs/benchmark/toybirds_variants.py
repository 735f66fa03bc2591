# Variants of the search on ToyBirds: each differs from `ap` by what its fragment says.
#   mmgap benchmark benchmark/toybirds_variants \
#       --methods ap ap-rounds ap-fixed ap-entropy ap-last-k ap-shortcut --budgets 400 \
#       --layers all --out runs/variants
# docs/results/README.md#toybirds-variants-other-ways-to-search has its table.
_base_ = ['toybirds_resnet18.py']

benchmark = dict(
    compare='ap',
    methods={
        'ap-rounds': dict(
            about='two rounds of half the prompts each, the second against the model trained on',
            rounds=2,
            search=dict(prompts_per_class=2),
        ),
        'ap-fixed': dict(
            about='the same three sources and noises at every step',
            search=dict(fresh=False),
        ),
        'ap-entropy': dict(
            about='seeks doubt (cross-entropy to the uniform distribution), not failure',
            search=dict(stop_loss=0.75),  # its least value is log 2
            feedback=[dict(type='mmgap.AdversarialLoss', mode='uniform')],
        ),
        'ap-last-k': dict(
            about='gradient through the last two of five denoising steps',
            search=dict(),
            generator=dict(gradient=dict(mode='last_k', k=2)),
        ),
        'ap-shortcut': dict(
            about='gradient through the first denoising step, then along the linear path',
            search=dict(),
            generator=dict(gradient=dict(mode='shortcut')),
        ),
    },
)
