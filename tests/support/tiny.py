# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the real classes, with random weights, made where a test needs them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from mmgap.compat import allow_mmcv_without_ops

# Of the tiny Stable Diffusion XL: widths of its text encoders and of the pooled embedding, and what
# its UNet and ControlNet are told besides the text.
XL_WIDTHS, XL_POOLED = (32, 48), 40
XL_ADDED = dict(
    addition_embed_type='text_time',
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + XL_POOLED,
)


def tiny_tokenizer(signs: Sequence[str] = (), **settings) -> CLIPTokenizer:
    """Letters, and some signs: each is a token, with and without an end of word."""
    letters = list(signs) + list(string.ascii_lowercase) + [',']
    tokens = letters + [f'{c}</w>' for c in letters] + ['<|startoftext|>', '<|endoftext|>']
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        **(dict(merges=[], model_max_length=20) | settings),
    )


def save_tiny_pipeline(
    folder: Path,
    in_channels: int = 4,
    sample_size: int = 8,
    width: int = 32,
    blocks: tuple[int, int] = (32, 64),
    tokens: int = 20,
) -> Path:
    """Save a tiny Stable Diffusion; images are ``2 * sample_size`` pixels wide."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(model_max_length=tokens)
    text_encoder = CLIPTextModel(_text_config(tokenizer, width))
    parts = _image_parts(in_channels, sample_size, cross_attention_dim=width, blocks=blocks)
    return _save(folder, tokenizer, text_encoder, parts)


def _save(folder: Path, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, parts: dict) -> Path:
    StableDiffusionInpaintPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        **parts,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_tiny_sd2(folder: Path) -> Path:
    """Save a tiny Stable Diffusion 2.1 of 16 pixels: velocities, OpenCLIP's text encoder."""
    torch.manual_seed(4)
    tokenizer = tiny_tokenizer('!', pad_token='!')
    config = _text_config(tokenizer, 32)
    config.hidden_act = 'gelu'
    parts = _image_parts(
        4, cross_attention_dim=32, use_linear_projection=True, attention_head_dim=(2, 8)
    )
    parts['scheduler'].register_to_config(prediction_type='v_prediction')
    return _save(folder, tokenizer, CLIPTextModel(config), parts)


def save_tiny_xl(folder: Path, in_channels: int = 4, eos_token_id: int | None = None) -> Path:
    """Save a tiny Stable Diffusion XL of 16 pixels, whose second tokenizer pads as the real one.

    Configs of older text encoders have ``eos_token_id=2``, whatever their tokenizer's is.
    """
    torch.manual_seed(3)
    tokenizers = tiny_tokenizer('!'), tiny_tokenizer('!', pad_token='!')
    configs = [_text_config(t, w) for t, w in zip(tokenizers, XL_WIDTHS, strict=True)]
    for config in configs:
        config.projection_dim = XL_POOLED
        config.eos_token_id = config.eos_token_id if eos_token_id is None else eos_token_id
    StableDiffusionXLInpaintPipeline(
        text_encoder=CLIPTextModel(configs[0]),
        text_encoder_2=CLIPTextModelWithProjection(configs[1]),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        **_image_parts(in_channels, cross_attention_dim=sum(XL_WIDTHS), **XL_ADDED),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _image_parts(
    in_channels: int, sample_size: int = 8, blocks: tuple[int, int] = (32, 64), **unet
) -> dict:
    """UNet, VAE and scheduler."""
    unet = UNet2DConditionModel(
        block_out_channels=blocks,
        layers_per_block=1,
        sample_size=sample_size,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        norm_num_groups=8,
        **(dict(attention_head_dim=4) | unet),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        in_channels=3,
        out_channels=3,
        down_block_types=('DownEncoderBlock2D', 'DownEncoderBlock2D'),
        up_block_types=('UpDecoderBlock2D', 'UpDecoderBlock2D'),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=2 * sample_size,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='scaled_linear',
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return dict(vae=vae, unet=unet, scheduler=scheduler)


def save_tiny_controlnet(
    folder: Path, width: int = 32, blocks: tuple[int, int] = (32, 64), **added
) -> Path:
    """Save a ControlNet for the tiny Stable Diffusion, whose zero convolutions are not zero."""
    torch.manual_seed(2)
    network = ControlNetModel(
        block_out_channels=blocks,
        layers_per_block=1,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 16),
        **added,
    )
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


def tiny_classifier(classes: int = 2, smooth: bool = False) -> torch.nn.Module:
    """An MMPretrain classifier of stock parts; ``smooth`` has no kinks for finite differences."""
    from mmengine.registry import init_default_scope
    from mmpretrain.models import build_classifier

    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    model = build_classifier(
        dict(
            type='ImageClassifier',
            data_preprocessor=dict(
                mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
            ),
            backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=classes,
                in_channels=64,
                loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
            ),
        )
    )
    if smooth:
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, torch.nn.ReLU):
                    setattr(module, name, torch.nn.SiLU())
                elif isinstance(child, torch.nn.MaxPool2d):
                    setattr(module, name, torch.nn.AvgPool2d(3, 2, 1))
    return model


def tiny_depth_model() -> torch.nn.Module:
    """A DepthEstimator of MMSegmentation with an untrained ResNet and one of our heads."""
    from mmengine.config import ConfigDict

    allow_mmcv_without_ops()
    from mmseg.registry import MODELS

    import mmgap.models  # noqa: F401  the heads

    torch.manual_seed(1)
    return MODELS.build(ConfigDict(tiny_depth_config()))


def tiny_depth_config() -> dict:
    """Config of :func:`tiny_depth_model`."""
    return dict(
        type='mmseg.DepthEstimator',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor',
            mean=[127.5] * 3,
            std=[127.5] * 3,
            bgr_to_rgb=True,
            seg_pad_val=0,
        ),
        backbone=dict(
            type='mmseg.ResNetV1c',
            depth=18,
            base_channels=8,
            stem_channels=8,
            norm_cfg=dict(type='BN'),
        ),
        decode_head=dict(
            type='mmgap.ConvDepthHead',
            in_channels=[8, 16, 32, 64],
            in_index=[0, 1, 2, 3],
            input_transform='resize_concat',
            channels=16,
            norm_cfg=dict(type='BN'),
            max_depth=20.0,
            loss_decode=dict(type='mmgap.MaskedL1Loss'),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def save_tiny_sam(folder: Path) -> Path:
    """Save a SAM for images of 64 pixels, whose masks depend on the box."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    network = SamModel(
        SamConfig(
            vision_config=dict(
                hidden_size=16,
                output_channels=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=64,
                patch_size=8,
                window_size=4,
                global_attn_indexes=[1],
                num_pos_feats=8,
                mlp_dim=32,
            ),
            prompt_encoder_config=dict(
                hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
            ),
            mask_decoder_config=dict(
                hidden_size=16,
                mlp_dim=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                iou_head_hidden_dim=16,
            ),
        )
    )
    torch.manual_seed(2)
    # Its own weights are so small that nothing depends on anything.
    for name, parameter in network.named_parameters():
        loud = any(part in name for part in ('prompt', 'mask_tokens', 'norm'))
        torch.nn.init.normal_(parameter, std=3.0 if loud else 0.5)
    network.save_pretrained(folder)
    SamProcessor(
        SamImageProcessor(
            size=dict(longest_edge=64),
            pad_size=dict(height=64, width=64),
            mask_size=dict(longest_edge=32),
            mask_pad_size=dict(height=32, width=32),
        )
    ).save_pretrained(folder)
    return folder
