# Stable Diffusion 1.5 around a kept object.
_base_ = ['sd15.py']

generator = dict(type='mmgap.InpaintingGenerator', eta=1.0)
