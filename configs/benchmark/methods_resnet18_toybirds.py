# Methods at equal cost on a weak target, whole network:
#   python tools/benchmark.py configs/benchmark/methods_resnet18_toybirds.py \
#       --budgets 50 100 --methods none prompts random-many ap-many gap \
#       --layers all --injections refit --seeds $(seq 20 39) --out runs/methods
_base_ = ['toybirds_resnet18.py']

guided = [{{_base_.patient_attack}}, {{_base_.text_guidance}}]

# Splits that were read for this comparison alone.
test_dataloader = dict(dataset=dict(split='test_final_3'))
benchmark = dict(
    evaluate=dict(
        _delete_=True,
        val=dict(split='val', size=1000, indices=list(range(400, 1000))),
        val_id=dict(split='val_id', size=200),
        test_shift_3=dict(split='test_shift_3', size=400),
        test_id_3=dict(split='test_id_3', size=400),
    ),
    evaluate_prompts=False,
    compare=['ap-many', 'random-many', 'gap'],
    methods={
        # What `gap` costs, spent on sentences: as more images, or to choose the useful ones from.
        'prompts-more': dict(
            about='prompts at the cost of gap, all images trained on',
            texts={{_base_.descriptions}},
            cost_of='gap',
        ),
        'random-more': dict(
            about='random prompts at the cost of gap, all images trained on',
            initial=dict(prompts_per_class=175),
            cost_of='gap',
        ),
        'prompts-select': dict(
            about='prompts at the cost of gap, of which those of middling loss are kept',
            texts={{_base_.descriptions}},
            cost_of='gap',
            synthesis=dict(keep=dict(by='loss', rank=0.5)),
        ),
        # Draws nothing.
        'paste': dict(
            about='training images whose objects are pasted on those of other classes instead',
            train={
                'train_dataloader.dataset.pipeline': [
                    _base_.train_pipeline[0],
                    dict(
                        type='mmgap.PasteObject',
                        images=dict(type='mmgap.ToyBirds', split='train'),
                    ),
                    *_base_.train_pipeline[1:],
                ]
            },
        ),
        # Later rounds search against the model trained on the images of those before.
        'gap-rounds-2': dict(
            about='gap in two rounds of half the prompts each',
            rounds=2,
            search=dict(_base_.from_descriptions, prompts_per_class=2, aim=1.0),
            feedback=guided,
            synthesis=dict(aim=0.5),
        ),
        'gap-rounds-4': dict(
            about='gap in four rounds of a quarter of the prompts each',
            rounds=4,
            search=dict(_base_.from_descriptions, prompts_per_class=1, aim=1.0),
            feedback=guided,
            synthesis=dict(aim=0.5),
        ),
    },
)
