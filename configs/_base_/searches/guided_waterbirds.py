# Guidance on Waterbirds, in the paper's setting: text, L2, weight 20.

# What a user says of the places where the model will be used.
descriptions = [
    'a bird in a forest',
    'a bird in bamboo',
    'a bird on the ocean',
    'a bird by a lake',
]
attack = dict(type='mmgap.AdversarialLoss', mode='flip')
text_guidance = dict(
    type='mmgap.TextGuidance',
    descriptions=descriptions,
    space='text_encoder',
    distance='l2',
    weight=20.0,
)
