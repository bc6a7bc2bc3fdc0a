"""Vision transformers and their pretrained weights by name: torchvision's, and a small one for 32-pixel images."""

import vitcifar.data.torchvision_compat  # noqa: F401  first: lets torchvision be imported beside a CPU-only torch

# isort: split
from functools import partial

from torch import nn
from torchvision import models
from torchvision.models import VisionTransformer as VisionTransformer
from torchvision.models import WeightsEnum as WeightsEnum
from torchvision.models.vision_transformer import ConvStemConfig
from torchvision.models.vision_transformer import interpolate_embeddings as interpolate_embeddings
from torchvision.transforms import v2 as v2

from vitcifar.errors import ConfigError

TINY_IMAGE_SIZE = 32
TINY_PATCH_SIZE = 8
# Sizes that torchvision does not name: hidden size, blocks, heads (DeiT, Touvron et al. 2021; DINOv2's patches of 14).
OTHER_SIZES = {"vit_ti_16": (192, 12, 3), "vit_s_16": (384, 12, 6), "vit_s_14": (384, 12, 6), "vit_b_14": (768, 12, 12)}


def vit_tiny(image_size: int) -> VisionTransformer:
    """A small ViT from torchvision's modules: a stem of four convolutions (patches of 8 pixels), 3 blocks, width 96.

    Convolutional stem: Xiao et al. 2021, "Early convolutions help transformers see better". GroupNorm, because its
    output does not depend on the batch: it is the same in training, in micro-batches and in serving.
    """
    norm = partial(nn.GroupNorm, 1)
    layers = ((24, 2), (48, 2), (96, 2), (96, 1))
    stem = [ConvStemConfig(width, kernel_size=3, stride=stride, norm_layer=norm) for width, stride in layers]
    return VisionTransformer(
        image_size=image_size,
        patch_size=TINY_PATCH_SIZE,
        num_layers=3,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=192,
        num_classes=1,
        conv_stem_configs=stem,
    )


def build_backbone(arch: str, image_size: int) -> VisionTransformer:
    """A vision transformer with new weights; raises ConfigError when `image_size` is no multiple of the patch size."""
    patch_size = TINY_PATCH_SIZE if arch == "vit_tiny" else int(arch.rsplit("_", 1)[1])
    if image_size < patch_size or image_size % patch_size:
        near = max(patch_size, round(image_size / patch_size) * patch_size)
        raise ConfigError(f"image_size is {image_size}: {arch} needs a multiple of {patch_size}, such as {near}.")
    if arch == "vit_tiny":
        return vit_tiny(image_size)
    if arch in OTHER_SIZES:
        width, num_layers, num_heads = OTHER_SIZES[arch]
        return VisionTransformer(
            image_size, patch_size, num_layers, num_heads, hidden_dim=width, mlp_dim=4 * width, num_classes=1
        )
    return models.get_model(arch, weights=None, image_size=image_size, num_classes=1)


def find_weights(arch: str, name: str) -> WeightsEnum:
    """torchvision's pretrained weights of an architecture by name; raises ConfigError with the valid names."""
    own = arch == "vit_tiny" or arch in OTHER_SIZES
    names = [] if own else [weights.name for weights in models.get_model_weights(arch)]
    if name not in names:
        raise ConfigError(
            f"There are no pretrained weights {name!r} for {arch}: type --weights {', '.join([*names, 'none'])}, the "
            "path of a state dict, or models:/NAME/VERSION."
        )
    return models.get_model_weights(arch)[name]


def default_image_size(arch: str, weights: str) -> int:
    """The input size in pixels that an architecture, or its pretrained weights, were made for."""
    if arch == "vit_tiny":
        return TINY_IMAGE_SIZE
    if arch in OTHER_SIZES:
        return 224
    pretrained = models.get_model_weights(arch)
    return pretrained[weights].meta["min_size"][0] if weights in pretrained.__members__ else 224
