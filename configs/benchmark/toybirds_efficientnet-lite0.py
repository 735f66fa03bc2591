# All methods against a strong target on the embedded world, of which the head alone is trained.
# Needs mmgap[strong].
#   mmgap benchmark benchmark/toybirds_efficientnet-lite0 \
#       --methods none prompts ap gap real --budgets 100 200 --layers last \
#       --injections mix refit --out runs/strong
# docs/results/README.md#injection-mixed-in-or-as-a-refit has its tables.
_base_ = ['../ap_efficientnet-lite0_toybirds.py', '../_base_/methods/toybirds.py']

paste = dict(type='mmgap.PasteObject', images=dict(type='mmgap.ToyBirds', split='train'))
benchmark = dict(
    steps=200,
    train=dict(),
    methods=dict(
        paste=dict(
            train={
                'train_dataloader.dataset.pipeline': [
                    _base_.train_pipeline[0],
                    paste,
                    *_base_.train_pipeline[1:],
                ]
            }
        )
    ),
)
