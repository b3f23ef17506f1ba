"""Tiny settings for every model type that ``AutoModelForImageClassification`` maps and the library supports."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

NUM_LABELS = 5

TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
DINO = {k: v for k, v in TRANSFORMER.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
CLIP_TEXT = TEXT | {"bos_token_id": 7, "eos_token_id": 8}
WINDOWS = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "hidden_act": "silu"}
SQUEEZED = STAGES | {"embedding_size": 24, "hidden_sizes": [24, 32]}
CONVNEXT = {"num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]}
MOBILE = {"image_size": 16, "depth_multiplier": 0.02, "finegrained_output": False, "hidden_act": "silu"}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "mlp_ratios": [2, 2],
    "num_attention_heads": [1, 2],
    "sr_ratios": [2, 1],
}
PVT = {k: v for k, v in PYRAMID.items() if k != "sr_ratios"} | {
    "image_size": 16,
    "patch_sizes": [4, 2],
    "strides": [4, 2],
    "sequence_reduction_ratios": [2, 1],
}
CVT = {
    "patch_sizes": [3, 3],
    "patch_stride": [2, 2],
    "patch_padding": [1, 1],
    "embed_dim": [8, 16],
    "num_heads": [1, 2],
    "depth": [1, 2],
    "mlp_ratio": [2.0, 2.0],
    "attention_drop_rate": [0.0, 0.0],
    "drop_rate": [0.0, 0.0],
    "drop_path_rate": [0.0, 0.0],
    "qkv_bias": [True, True],
    "cls_token": [False, True],
    "qkv_projection_method": ["dw_bn", "dw_bn"],
    "kernel_qkv": [3, 3],
    "padding_kv": [1, 1],
    "stride_kv": [2, 2],
    "padding_q": [1, 1],
    "stride_q": [1, 1],
}
EFFICIENTNET = {
    "image_size": 16,
    "width_coefficient": 0.01,
    "depth_coefficient": 1.0,
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 5],
    "strides": [1, 2],
    "num_block_repeats": [1, 2],
    "expand_ratios": [1, 4],
    "hidden_dim": 16,
}
FOCALNET = {
    "image_size": 16,
    "embed_dim": 8,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "focal_levels": [2, 1],
    "focal_windows": [3, 3],
    "mlp_ratio": 2.0,
}
HGNET = {
    "embedding_size": 8,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8],
    "stage_mid_channels": [8, 8],
    "stage_out_channels": [8, 16],
    "stage_num_blocks": [1, 1],
    "stage_downsample": [False, True],
    "stage_downsample_strides": [2, 2],
    "stage_light_block": [False, True],
    "stage_kernel_size": [3, 3],
    "stage_numb_of_layers": [1, 1],
}
HIERA = {
    "embed_dim": 8,
    "image_size": [16, 16],
    "patch_size": [3, 3],
    "patch_stride": [2, 2],
    "patch_padding": [1, 1],
    "mlp_ratio": 2.0,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "num_query_pool": 1,
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False],
}
LEVIT = {
    "image_size": 32,
    "hidden_sizes": [16, 16, 24],
    "num_attention_heads": [1, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [4, 4, 4],
}
MOBILEVIT = {
    "image_size": 16,
    "output_stride": 8,
    "hidden_sizes": [8, 12, 16],
    "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
    "num_attention_heads": 2,
    "mlp_ratio": 1.0,
    "expand_ratio": 1.0,
}
MOBILEVITV2 = {
    "image_size": 16,
    "output_stride": 8,
    "base_attn_unit_dims": [8, 8, 8],
    "n_attn_blocks": [1, 1, 1],
    "width_multiplier": 0.1,
    "expand_ratio": 1.0,
}
PERCEIVER = {
    "num_latents": 4,
    "d_latents": 8,
    "num_blocks": 2,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
    "image_size": 8,
}
POOLFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "padding": [1, 1],
    "mlp_ratio": 2.0,
}
SWIFTFORMER = {"image_size": 32, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 12], "mlp_ratio": 1}
TEXTNET = {
    "image_size": [16, 16],
    "stem_out_channels": 4,
    "hidden_sizes": [4, 8, 8, 8, 8],
    "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
    "conv_layer_strides": [[1], [2], [1], [2]],
}


def from_config(family: str, head: str = "ForImageClassification", **settings) -> Callable[[], nn.Module]:
    def make():
        config = getattr(hf, f"{family}Config")(num_labels=NUM_LABELS, **settings)
        return getattr(hf, f"{family}{head}")(config)

    return make


class PixelImageGPTConfig(hf.ImageGPTConfig):
    model_type = "pixel_imagegpt"


class PixelImageGPT(hf.ImageGPTForImageClassification):
    """ImageGPT reads colour clusters; here a fixed map of each pixel's colour stands for their embedding. A model
    built from ``Conv1D``, of which no other architecture has any."""

    config_class = PixelImageGPTConfig

    def __init__(self, config):
        super().__init__(config)
        colours = torch.randn(3, config.n_embd, generator=torch.Generator().manual_seed(0))
        self.register_buffer("colours", colours)

    def forward(self, pixel_values: Tensor):
        tokens = pixel_values.flatten(2).transpose(1, 2)
        return super().forward(inputs_embeds=tokens @ self.colours, use_cache=False)


def image_gpt():
    return PixelImageGPT(
        PixelImageGPTConfig(num_labels=NUM_LABELS, vocab_size=9, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    )


UNMAPPED = {  # types without an image processor of their own, and what their checkpoints bring
    "dinov2_with_registers": "BitImageProcessorPil",
    "hgnet_v2": "ViTImageProcessorPil",
    "pixel_imagegpt": "ViTImageProcessorPil",
}


def image_processor(model_type: str, size: int, channels: int = 3):
    """The image processor that ``AutoImageProcessor`` picks for a model type, for images of ``size`` pixels."""
    mapped = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    kind = getattr(hf, UNMAPPED[model_type] if mapped is None else mapped["pil"])
    usual = kind().to_dict()
    crops = bool(usual.get("do_center_crop"))
    settings = {}
    if kind is hf.TextNetImageProcessorPil:  # keeps the shape of each image unless it is told to crop
        crops = settings["do_center_crop"] = True
    side = size + 3 if crops else size
    settings["size"] = {"shortest_edge": side} if "shortest_edge" in usual["size"] else {"height": side, "width": side}
    if crops:
        settings["crop_size"] = {"height": size, "width": size}
    if kind is hf.PerceiverImageProcessorPil:  # crops first
        settings["size"], settings["crop_size"] = settings["crop_size"], settings["size"]
    if channels == 1:
        settings |= {"image_mean": [0.4], "image_std": [0.3]}
    return kind(**settings)
