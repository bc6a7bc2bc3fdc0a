"""The weights that a network starts from: torchvision's pretrained ones, a file with a state dict, or a release.

Files come with wrappers around the state dict and prefixes before its names; here is what of them is the network."""

import dataclasses
import functools
import hashlib
import http.client
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcifar.config import VITS
from vitcifar.data.download import STALL_SECONDS, socket_timeout, why_unreachable
from vitcifar.errors import TrainingError, listed, reason_of
from vitcifar.model.foreign_names import FOREIGN_ANCHORS, translate
from vitcifar.model.tensor_file import load_file
from vitcifar.model.vit import WeightsEnum, build_backbone, default_image_size, find_weights, interpolate_embeddings

Notify = Callable[[str], object]

POSITIONS = "backbone.encoder.pos_embedding"
# Parts of names that come from DataParallel, torch.compile, FSDP and activation checkpointing, anywhere in a name.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
ANCHORS = ("class_token", "encoder.pos_embedding", "encoder.ln.weight")  # what stands before these is a prefix
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)")
STUDENT = re.compile(r"(^|[._])student([._]|$)")  # DINO's checkpoints: the teacher beside it is used
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights under the network's names (backbone..., head...), and what else their network is made of."""

    state: dict[str, Tensor]
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of Classifier.set_constants


def read_weights(
    arch: str,
    name: str,
    *,
    load_release: Callable[[str], Pretrained] | None = None,
    notify: Notify = lambda message: None,
) -> Pretrained:
    """The weights that `name` names; `notify` receives what of a file is left over.

    Raises ConfigError for a name that torchvision does not have, TrainingError for a file that cannot be read or holds
    no vision transformer, and for a download that fails.
    """
    if name.startswith("models:/"):
        if load_release is None:
            raise TrainingError(f"{name} is in a registry, and no registry is available here.")
        return load_release(name)
    if "://" in name:
        raise TrainingError(f"{name} is an address: download the file, and type --weights with its path.")
    value = read_file(Path(name).expanduser()) if is_path(name) else download(find_weights(arch, name), arch)
    tensors = tensors_of(value)
    if not tensors:
        raise TrainingError(f"{name} holds no tensors, but a {type(value).__name__}: name a file with a state dict.")
    return select(tensors, name=name, notify=notify)


def is_path(name: str) -> bool:
    return "/" in name or "\\" in name or Path(name).suffix != "" or os.path.isfile(name)


def read_file(path: Path) -> Any:
    """What a file holds, tensors in any nesting. Raises TrainingError."""
    if os.path.isdir(path):
        raise TrainingError(f"{path} is a folder: name the file with weights that is in it.")
    if not os.path.isfile(path):
        raise TrainingError(f"There is no file {path} with weights: check the path, or type --weights none.")
    return load_file(path)


def cached_file(weights: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])


def download(weights: WeightsEnum, arch: str) -> Any:
    """torchvision's weights from torch hub's cache, or else downloaded; an unreachable host fails within seconds.

    Their sha256 must begin as the name of the file says, also in the cache. Raises TrainingError.
    """
    path = cached_file(weights)
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)  # torch hub's convention
    expected = named[1] if named else ""
    if not os.path.isfile(path):
        problem = why_unreachable(weights.url)
        try:
            if not problem:
                path.parent.mkdir(parents=True, exist_ok=True)
                with socket_timeout(STALL_SECONDS):
                    torch.hub.download_url_to_file(weights.url, str(path), expected)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            problem = reason_of(error)
        if problem:
            raise TrainingError(
                f"The weights {weights.name} of {arch} could not be downloaded from {weights.url} ({problem}): "
                f"type --preset digits, --weights none, or put the file at {path}."
            )
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if not actual.startswith(expected):
        raise TrainingError(
            f"{path} is not {weights.name} of {arch}, or is damaged: its sha256 begins with {actual[: len(expected)]}, "
            f"not with {expected} as its name says: delete the file and run again."
        )
    return load_file(path, cure="delete the file and run again")


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Every tensor in nested mappings, by the keys that lead to it, with dots between them."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    pending = [("", value)]
    for name, inner in pending:  # grows; a file may hold a mapping that contains itself
        if isinstance(inner, Mapping) and id(inner) not in seen:
            seen.add(id(inner))
            pending += [(f"{name}.{key}" if name else str(key), below) for key, below in inner.items()]
        elif isinstance(inner, Tensor) and inner.layout == torch.strided and not (inner.is_meta or inner.is_nested):
            tensors[name] = inner
    return tensors


def select(tensors: Mapping[str, Tensor], *, name: str, notify: Notify) -> Pretrained:
    """The tensors of the one vision transformer among these, under the network's names.

    Raises TrainingError when there is none, or more than one that is not an average or the student of the other.
    """
    plain = {".".join(part for part in key.split(".") if part not in WRAPPERS): tensors[key] for key in tensors}
    prefix, foreign = find_prefix(plain, name)
    constants: dict[str, Any] = {}
    if foreign:
        plain, constants["layer_norm_eps"] = translate(plain, prefix, name)
    parts = prefix.split(".")[:-1]
    parents = ["".join(f"{part}." for part in parts[:end]) for end in range(len(parts), -1, -1)]  # longest first
    state: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    unused: list[str] = []
    for full, tensor in plain.items():
        parent = next(parent for parent in parents if full.startswith(parent))
        inner = full.removeprefix(parent)
        if parent == prefix and inner.startswith(("conv_proj.", "class_token", "encoder.")):
            state[f"backbone.{inner}"] = tensor
        elif inner in ("head.weight", "head.bias", "temperature"):
            state[inner] = tensor
        elif parent == prefix and inner.startswith("heads."):
            heads[inner] = tensor
        else:
            unused.append(inner.split(".")[0])
    if len({key.rpartition(".")[0] for key in heads}) == 1:
        state |= {f"head.{key.rpartition('.')[2]}": tensor for key, tensor in heads.items()}
    elif heads:  # of several layers
        unused.append("heads")
    if unused:
        notify(f"Not used from {name}: {listed(list(dict.fromkeys(unused)), MAX_NAMED)}.")
    return Pretrained(state, constants)


def find_prefix(names: Collection[str], name: str) -> tuple[str, bool]:
    """What stands before the names of the vision transformer, "" or a text that ends with a dot, and whether they are
    timm's or Hugging Face's. Raises TrainingError.
    """
    found: list[str] = []
    foreign = False
    for anchor in (*ANCHORS, *FOREIGN_ANCHORS):
        if not found:
            found = [key.removesuffix(anchor) for key in names if f".{key}".endswith(f".{anchor}")]
            foreign = anchor in FOREIGN_ANCHORS
    for less in (AVERAGED, STUDENT):
        found = [prefix for prefix in found if not less.search(prefix)] or found
    if len(found) > 1:
        which = ", ".join(prefix.rstrip(".") or "without a prefix" for prefix in found)
        raise TrainingError(f"{name} holds {len(found)} vision transformers ({which}): save one of them alone.")
    if found:
        return found[0], foreign
    if "weights.head.weight" in names:
        raise TrainingError(
            f"{name} is the checkpoint of a run that trained the head alone, and holds nothing else: "
            "type --weights models:/NAME/VERSION with the version of that run."
        )
    raise TrainingError(
        f"{name} holds no vision transformer with the names of torchvision, timm or Hugging Face, but other names: "
        f"{listed(list(names), MAX_NAMED)}. Name other weights, or type --weights none."
    )


def load_weights(network: nn.Module, state: dict[str, Tensor], *, name: str, notify: Notify) -> None:
    """Load a state dict: interpolate positions of another image size, replace a head of another number of classes.

    Raises TrainingError with the expected and the actual shapes.
    """
    expected = network.state_dict()
    state = resize_positions(state, expected[POSITIONS], notify)
    new_head = {key: expected[key] for key in ("head.weight", "head.bias")}
    if any(shape_of(state, key) != shape_of(expected, key) for key in new_head):
        head = state.get("head.weight")
        was = f"of {len(head)} classes " if head is not None and head.ndim else ""
        notify(f"The head {was}in {name} is replaced by a new one of {len(new_head['head.bias'])} classes.")
        state = {**state, **new_head}
    state = {**state, "temperature": expected["temperature"]}  # calibration is fitted after training
    wrong = [
        f"{key}: expected {shape_of(expected, key)}, got {shape_of(state, key)}"
        for key in {**expected, **state}
        if shape_of(expected, key) != shape_of(state, key)
    ]
    if wrong:
        problem = f"The weights {name} do not fit: {listed(wrong, MAX_NAMED, '; ')}"
        if (arch := arch_of(state)) and arch != arch_of(expected):
            raise TrainingError(f"{problem}. They fit {arch}: type --arch {arch}.")
        if all(line.endswith("got nothing") for line in wrong):
            raise TrainingError(
                f"{problem}. If it is the checkpoint of a run, it holds the layers that were trained alone: "
                "type --weights models:/NAME/VERSION with the version of that run."
            )
        raise TrainingError(f"{problem}. Check --arch, or name other weights.")
    if infinite := [key for key, tensor in state.items() if not tensor.float().isfinite().all()]:
        raise TrainingError(f"The weights {name} are not finite in {listed(infinite, MAX_NAMED)}: name other weights.")
    network.load_state_dict(state)


def shape_of(tensors: Mapping[str, Tensor], key: str) -> str:
    tensor = tensors.get(key)
    if tensor is None:
        return "nothing"
    kind = "" if tensor.dtype in FLOATS else f" of {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"


def arch_of(state: Mapping[str, Tensor]) -> str:
    """The architecture whose backbone has these shapes, at any image size; "" if there is none."""
    got = {key: tensor.shape for key, tensor in state.items() if key.startswith("backbone.") and key != POSITIONS}
    return next((arch for arch in VITS if got == backbone_shapes(arch)), "")


@functools.cache
def backbone_shapes(arch: str) -> dict[str, torch.Size]:
    """The shapes of a backbone's weights but for the positions, whose number depends on the image size."""
    with torch.device("meta"):
        state = build_backbone(arch, default_image_size(arch, "none")).state_dict()
    shapes = {f"backbone.{key}": tensor.shape for key, tensor in state.items() if not key.startswith("heads.")}
    del shapes[POSITIONS]
    return shapes


def resize_positions(state: dict[str, Tensor], expected: Tensor, notify: Notify) -> dict[str, Tensor]:
    """Interpolate the position embedding to the number of patches of another image size, as torchvision does."""
    positions = state.get(POSITIONS)
    if positions is None or positions.ndim != 3 or positions.shape[1] in (0, expected.shape[1]):
        return state
    was, side = math.isqrt(positions.shape[1] - 1), math.isqrt(expected.shape[1] - 1)
    if positions.shape != (1, was**2 + 1, expected.shape[2]) or not was:
        return state  # another architecture: load_weights reports it
    notify(f"The position embedding of {was} x {was} patches is interpolated to {side} x {side}.")
    resized = interpolate_embeddings(side, 1, {"encoder.pos_embedding": positions})
    return {**state, POSITIONS: resized["encoder.pos_embedding"]}
