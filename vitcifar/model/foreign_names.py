"""The ViTs of timm and Hugging Face under torchvision's names: the same arithmetic, other names and other cuts.

timm's names are also those of DINO, DINOv2, MAE, DeiT and AugReg. Letters in the shapes: D hidden size, P patches."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitcifar.errors import TrainingError, listed

# The first weight of each family stands at the top of its vision transformer: what is before it is a prefix.
FOREIGN_ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
HUGGING_FACE_EPS = 1e-12  # of its ViT, MAE and DeiT; torchvision, timm and Hugging Face's DINOv2 add 1e-6
MAX_NAMED = 3

BLOCK = re.compile(r"(?:blocks|encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias|gamma|lambda1)")
OUTSIDE = {
    "cls_token": "class_token",
    "embeddings.cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "embeddings.position_embeddings": "encoder.pos_embedding",
    **{f"{name}.{kind}": f"conv_proj.{kind}"
       for name in ("patch_embed.proj", "embeddings.patch_embeddings.projection") for kind in ("weight", "bias")},
    **{f"{name}.{kind}": f"encoder.ln.{kind}" for name in ("norm", "layernorm") for kind in ("weight", "bias")},
}  # fmt: skip
INSIDE = {
    **dict.fromkeys(("norm1", "layernorm_before"), "ln_1."),
    **dict.fromkeys(("norm2", "layernorm_after"), "ln_2."),
    "attn.qkv": "self_attention.in_proj_",
    **dict.fromkeys(("attn.proj", "attention.output.dense", "attention.o_proj"), "self_attention.out_proj."),
    **dict.fromkeys(("mlp.fc1", "intermediate.dense"), "mlp.0."),
    **dict.fromkeys(("mlp.fc2", "output.dense"), "mlp.3."),
}
QUERY_KEY_VALUE = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
)
SCALES = {  # LayerScale (Touvron et al. 2021): a factor per channel of what a block adds
    **dict.fromkeys(("ls1", "layer_scale1"), "self_attention.out_proj"),
    **dict.fromkeys(("ls2", "layer_scale2"), "mlp.3"),
}
HEADS = {"classifier": "head", "fc": "head"}
# What computes something else than torchvision's ViT, how its names begin, and what would fit.
REFUSED = (
    (("dist_token", "embeddings.distillation_token"), "has a distillation token (DeiT's distilled models)",
     "take the model without `distilled` in its name"),
    (("reg_token", "register_tokens", "embeddings.register_tokens"), "has register tokens",
     "take the model without `reg` in its name"),
    (("fc_norm.",), "classifies by the mean of the patches, not by the class token",
     "take the weights before fine-tuning, or a model with a class token"),
    (("norm_pre.", "pre_layrnorm."), "normalises before its first block (CLIP)", "take DINO, MAE, DeiT or AugReg"),
)  # fmt: skip


def translate(tensors: Mapping[str, Tensor], prefix: str, name: str) -> tuple[dict[str, Tensor], float]:
    """These tensors with the vision transformer below `prefix` under torchvision's names, and its layer norms' epsilon.

    Query, key and value become one projection, LayerScale is multiplied into the projections before it, and a
    position embedding without a class token gets zeros for it: the features are the same. Tensors that are no part of
    the transformer keep their names. Raises TrainingError for a layer that torchvision's ViT does not have.
    """
    inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    refuse(inside, name)
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    scales: dict[str, Tensor] = {}
    others = {rename_head(key): tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
    unknown = []
    for key, tensor in inside.items():
        if key in OUTSIDE:
            found[OUTSIDE[key]] = tensor
        elif match := BLOCK.fullmatch(key):
            block, layer, kind = f"encoder.layers.encoder_layer_{match[1]}.", match[2], match[3]
            which = [index for index, names in enumerate(QUERY_KEY_VALUE) if layer in names]
            if kind in ("gamma", "lambda1") and layer in SCALES:
                scales[block + SCALES[layer]] = tensor
            elif which:
                parts.setdefault(f"{block}self_attention.in_proj_{kind}", {})[which[0]] = tensor
            elif layer in INSIDE:
                found[f"{block}{INSIDE[layer]}{kind}"] = tensor
            else:
                unknown.append(key)
        elif key.startswith(("patch_embed.", "blocks.", "layers.", "encoder.", "embeddings.patch_embeddings.")):
            unknown.append(key)
        else:
            others[prefix + rename_head(key)] = tensor
    if unknown:
        raise TrainingError(
            f"{name} holds layers that torchvision's ViT does not have: {listed(unknown, MAX_NAMED)}. "
            "Take a plain ViT of timm or Hugging Face, or type --weights none."
        )
    if "pre_logits.fc.weight" in inside:  # its head classifies what they compute
        others = {key: tensor for key, tensor in others.items() if not key.endswith(("head.weight", "head.bias"))}
    found |= join(parts)
    apply_scales(found, scales, name)
    found |= with_class_position(found)
    eps = HUGGING_FACE_EPS if any(".layernorm_before." in key for key in inside) else 1e-6
    return {**{prefix + key: tensor for key, tensor in found.items()}, **others}, eps


def refuse(inside: Mapping[str, Tensor], name: str) -> None:
    for beginnings, what, advice in REFUSED:
        if any(key.startswith(beginnings) for key in inside):
            raise TrainingError(f"{name} holds a vision transformer that {what}, which is not supported: {advice}.")


def rename_head(key: str) -> str:
    """The name of a classifier, anywhere in a file, as timm and torchvision call it."""
    above, _, kind = key.rpartition(".")
    parent, dot, last = above.rpartition(".")
    return f"{parent}{dot}{HEADS.get(last, last)}.{kind}" if kind in ("weight", "bias") else key


def join(parts: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor]:
    """Query, key and value (D, D) each -> one projection (3 D, D); what is incomplete is left out, and then missing."""
    joined = {}
    for name, three in parts.items():
        shapes = {tensor.shape[1:] for tensor in three.values() if tensor.ndim}
        if sorted(three) == [0, 1, 2] and len(shapes) == 1 and all(tensor.ndim for tensor in three.values()):
            joined[name] = torch.cat([three[index] for index in range(3)])
    return joined


def apply_scales(found: dict[str, Tensor], scales: Mapping[str, Tensor], name: str) -> None:
    """Multiply each LayerScale (D,) into weight (D, ...) and bias (D,) of its projection: s (Wx + b) = (sW)x + sb."""
    for layer, scale in scales.items():
        for kind in ("weight", "bias"):
            tensor = found.get(f"{layer}.{kind}")
            if tensor is None or scale.ndim != 1 or not tensor.ndim or len(tensor) != len(scale):
                raise TrainingError(f"{name} holds a LayerScale that does not fit {layer}: name other weights.")
            found[f"{layer}.{kind}"] = tensor * scale.view(-1, *[1] * (tensor.ndim - 1))


def with_class_position(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A position embedding (1, P, D) of a square of patches alone -> (1, P + 1, D), with zeros for the class token."""
    positions = found.get("encoder.pos_embedding")
    if positions is None or positions.ndim != 3 or math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        return {}
    return {"encoder.pos_embedding": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}
