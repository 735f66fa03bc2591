# Guidance on ToyBirds, and what it changes in the search of adversarial prompts.

# What a user says of the place where the model will be used.
descriptions = [
    'a bird in a forest',
    'a bird in bamboo',
    'a bird on the ocean',
    'a bird by a lake',
]
clip = dict(model='mmgap://toybirds-clip')
# Guidance goes on when an image is fooled well enough.
patient_attack = dict(type='mmgap.AdversarialLoss', mode='flip', floor=0.3, weight=0.05)
# The image is compared: the sentence itself draws a second bird beside the kept one.
text_guidance = dict(
    type='mmgap.TextGuidance',
    descriptions=descriptions,
    assign='turn',
    space='clip',
    distance='cosine',
    clip=clip,
    weight=5.0,
)
from_descriptions = dict(
    stop_loss=None,  # guidance goes on to the end
    init=descriptions,
    steps=15,
    images_per_prompt=2,
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.05)),
)
