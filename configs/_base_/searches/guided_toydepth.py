# Guidance on ToyDepth.

# What a user says of the days when the model will be used.
descriptions = ['a picture at night', 'a picture in fog']
clip = dict(model='mmgap://toybirds-clip')
text_guidance = dict(
    type='mmgap.TextGuidance',
    descriptions=descriptions,
    assign='turn',
    space='clip',
    distance='cosine',
    clip=clip,
    weight=5.0,
)
