# Guidance on iWildCam, in the paper's setting: 64 unlabelled images, cosine, weight 10.
clip = dict(model='ViT-B-32', pretrained='laion2b_s34b_b79k')
# With another data_root, test_locations, test_time or guidance_share in datasets/iwildcam.py: here,
# too.
guidance_images = dict(type='mmgap.IWildCam', data_root='data/iwildcam', split='guidance')
image_guidance = dict(
    type='mmgap.ImageGuidance', images=guidance_images, limit=64, clip=clip, weight=10.0
)
