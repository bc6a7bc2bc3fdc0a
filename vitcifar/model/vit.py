"""Vision transformers by name: torchvision's, and a small one for 32-pixel images; and the weights they start from.

Initial weights are torchvision's pretrained ones, a file with a state dict, or a registered release."""

import vitcifar.data.torchvision_compat  # noqa: F401  first: lets torchvision be imported beside a CPU-only torch

# isort: split
import math
import pickle
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import VisionTransformer as VisionTransformer
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import ConvStemConfig, interpolate_embeddings
from torchvision.transforms import v2 as v2

from vitcifar.data.download import STALL_SECONDS, socket_timeout
from vitcifar.errors import ConfigError, TrainingError

TINY_IMAGE_SIZE = 32
TINY_PATCH_SIZE = 8
CONNECT_SECONDS = 5

# What torch.load raises for a file that is truncated, no archive, or holds more than tensors.
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, ValueError, OSError)


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
    return models.get_model(arch, weights=None, image_size=image_size, num_classes=1)


def find_weights(arch: str, name: str) -> WeightsEnum:
    """torchvision's pretrained weights of an architecture by name; raises ConfigError with the valid names."""
    names = [] if arch == "vit_tiny" else [weights.name for weights in models.get_model_weights(arch)]
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
    pretrained = models.get_model_weights(arch)
    return pretrained[weights].meta["min_size"][0] if weights in pretrained.__members__ else 224


def read_weights(
    arch: str, name: str, *, load_release: Callable[[str], Mapping[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The state dict of `name`, with the network's keys (backbone..., head...).

    Raises ConfigError for a name that torchvision does not have, TrainingError for a file that cannot be read or a
    download that fails.
    """
    if name.startswith("models:/"):
        if load_release is None:
            raise TrainingError(f"{name} is in a registry, and no registry is available here.")
        state = dict(load_release(name))
    else:
        state = read_file(Path(name).expanduser()) if is_path(name) else download(find_weights(arch, name), arch)
    return dict(renamed(state))


def is_path(name: str) -> bool:
    return "/" in name or "\\" in name or Path(name).suffix in (".pt", ".pth", ".bin") or Path(name).is_file()


def read_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict, alone or under "state_dict", "model" or "weights", without running code from the file."""
    if not path.is_file():
        raise TrainingError(f"There is no file {path} with weights: check the path, or type --weights none.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{path} cannot be read as a state dict ({reason[:120]}): save one with torch.save(network.state_dict(), "
            "PATH)."
        ) from error
    for key in ("state_dict", "model", "weights"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TrainingError(f"{path} holds no state dict: expected names and tensors, got {type(state).__name__}.")
    return dict(state)


def cached_file(weights: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])


def download(weights: WeightsEnum, arch: str) -> dict[str, Tensor]:
    """torchvision's weights from torch hub's cache, or else downloaded; an unreachable host fails within seconds."""
    path = cached_file(weights)
    advice = f"type --preset digits, --weights none, or put the file at {path}."
    if path.is_file():
        return read_file(path)
    try:
        urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD"), timeout=CONNECT_SECONDS).close()
        with socket_timeout(STALL_SECONDS):
            return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or error
        raise TrainingError(
            f"The weights {weights.name} of {arch} could not be downloaded from {weights.url} ({reason}): {advice}"
        ) from error


def renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """torchvision's keys (conv_proj..., encoder..., heads.head...) as the network's (backbone..., head...)."""
    for name, tensor in state.items():
        name = name.removeprefix("module.").removeprefix("network.")
        if name.startswith("heads."):
            yield "head." + name.rsplit(".", 1)[1], tensor
        elif name.startswith(("conv_proj.", "class_token", "encoder.")):
            yield f"backbone.{name}", tensor
        else:
            yield name, tensor


def load_weights(network: nn.Module, state: dict[str, Tensor], *, name: str, notify: Callable[[str], object]) -> None:
    """Load a state dict: interpolate positions of another image size, replace a head of another number of classes.

    Raises TrainingError with the expected and the actual shape.
    """
    expected = network.state_dict()
    state = resize_positions(state, expected["backbone.encoder.pos_embedding"], notify)
    head, new_head = state.get("head.weight"), expected["head.weight"]
    if head is None or head.shape != new_head.shape:
        was = f"of {len(head)} classes " if head is not None else ""
        notify(f"The head {was}in {name} is replaced by a new one of {len(new_head)} classes.")
        state = {**state, "head.weight": new_head, "head.bias": expected["head.bias"]}
    state = {**state, "temperature": expected["temperature"]}  # calibration is fitted after training
    for key in {**expected, **state}:
        shape, got = (tuple(tensors[key].shape) if key in tensors else "nothing" for tensors in (expected, state))
        if shape != got:
            raise TrainingError(f"The weights {name} do not fit: {key}: expected {shape}, got {got}. Check --arch.")
    network.load_state_dict(state)


def resize_positions(state: dict[str, Tensor], expected: Tensor, notify: Callable[[str], object]) -> dict[str, Tensor]:
    """Interpolate the position embedding to the number of patches of another image size, as torchvision does."""
    key = "backbone.encoder.pos_embedding"
    positions = state.get(key)
    if positions is None or positions.ndim != 3 or positions.shape[1] == expected.shape[1]:
        return state
    was, side = math.isqrt(positions.shape[1] - 1), math.isqrt(expected.shape[1] - 1)
    if was**2 + 1 != positions.shape[1] or positions.shape[2] != expected.shape[2]:
        return state  # another architecture: load_weights reports it
    notify(f"The position embedding of {was} x {was} patches is interpolated to {side} x {side}.")
    resized = interpolate_embeddings(side, 1, {"encoder.pos_embedding": positions})
    return {**state, key: resized["encoder.pos_embedding"]}


def check_weights(arch: str, name: str) -> None:
    """Raise what `read_weights` raises for a wrong name or a missing file, without loading tensors.

    torchvision's weights are downloaded when torch hub's cache lacks them. "none" and models:/ addresses pass: the
    registry resolves those.
    """
    if name == "none" or name.startswith("models:/"):
        return
    path = Path(name).expanduser() if is_path(name) else cached_file(find_weights(arch, name))
    if not path.is_file():
        read_weights(arch, name)  # raises, or downloads
