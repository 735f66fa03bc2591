# Guided adversarial prompts for a strong target on the embedded world, see
# ap_efficientnet-lite0_toybirds.py.
_base_ = ['ap_efficientnet-lite0_toybirds.py']

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        feedback=[{{_base_.patient_attack}}, {{_base_.text_guidance}}],
        search=dict(
            prompts_per_class=4,
            init={{_base_.descriptions}},
            aim=1.0,
            tokens=5,
            steps=15,
            num_inference_steps=5,
            images_per_prompt=2,
            batch_size=24,
            stop_loss=None,
            holdout=8,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.05)),
        ),
        synthesis=dict(num_inference_steps=10, batch_size=40, aim=0.5),
        injection=dict(mode='auto'),
        start=3,
        budget=200,
    )
]
