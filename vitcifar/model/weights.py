"""Where training starts from: torchvision's trained weights, a file with a state dict, or a registered release."""

import math
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from vitcifar.data.download import socket_timeout
from vitcifar.errors import TrainingError
from vitcifar.model.vit import WeightsEnum, find_weights, interpolate_embeddings

CONNECT_SECONDS = 5
STALL_SECONDS = 30


def read_weights(
    arch: str, name: str, *, load_release: Callable[[str], Mapping[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The state dict that `name` means, with our own names (backbone..., head...).

    Raises ConfigError for a name that torchvision does not have, TrainingError for a file or host that gives none.
    """
    if name.startswith("models:/"):
        if load_release is None:
            raise TrainingError(f"{name} is in a registry, and none was given here.")
        state = dict(load_release(name))
    elif is_path(name):
        state = read_file(Path(name).expanduser())
    else:
        state = download(find_weights(arch, name), arch)
    return dict(own_names(state))


def is_path(name: str) -> bool:
    return "/" in name or "\\" in name or Path(name).suffix in (".pt", ".pth", ".bin") or Path(name).is_file()


def read_file(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, alone or under "state_dict", "model" or "weights"; no code in the file is run."""
    if not path.is_file():
        raise TrainingError(f"There is no file {path} with weights: check the path, or type --weights none.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{path} cannot be read as a state dict ({reason[:120]}): save one with torch.save(network.state_dict(), "
            "PATH)."
        ) from error
    for key in ("state_dict", "model", "weights"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TrainingError(f"{path} holds no state dict: expected names with tensors, got {type(state).__name__}.")
    return dict(state)


def download(weights: WeightsEnum, arch: str) -> dict[str, Tensor]:
    """torchvision's weights from torch hub's cache, or from its host, which must answer within seconds."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    way_out = f"type --preset digits, --weights none, or put the file at {path}."
    if path.is_file():
        return read_file(path)
    try:
        with socket_timeout(CONNECT_SECONDS):
            urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD")).close()
        with socket_timeout(STALL_SECONDS):
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or error
        raise TrainingError(
            f"The weights {weights.name} of {arch} could not be had from {weights.url} ({reason}): {way_out}"
        ) from error


def own_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """torchvision's names (conv_proj..., encoder..., heads.head...) as ours (backbone..., head...)."""
    for name, tensor in state.items():
        name = name.removeprefix("module.").removeprefix("network.")
        if name.startswith("heads."):
            yield "head." + name.rsplit(".", 1)[1], tensor
        elif name.startswith(("conv_proj.", "class_token", "encoder.")):
            yield f"backbone.{name}", tensor
        else:
            yield name, tensor


def place_weights(network: nn.Module, state: dict[str, Tensor], *, name: str, notify: Callable[[str], Any]) -> None:
    """Load a state dict into a network; another image size is interpolated, a head of other classes replaced.

    Raises TrainingError with what was expected and what came.
    """
    expected = network.state_dict()
    state = resize_positions(state, expected["backbone.encoder.pos_embedding"], notify)
    head, new_head = state.get("head.weight"), expected["head.weight"]
    if head is None or head.shape != new_head.shape:
        was = f"of {len(head)} classes " if head is not None else ""
        notify(f"The head {was}in {name} is replaced by a new one of {len(new_head)} classes.")
        state = {**state, "head.weight": new_head, "head.bias": expected["head.bias"]}
    state = {**state, "temperature": expected["temperature"]}  # calibration is for the network that comes out
    check_fit(state, expected, name)
    network.load_state_dict(state)


def resize_positions(state: dict[str, Tensor], expected: Tensor, notify: Callable[[str], Any]) -> dict[str, Tensor]:
    """Interpolate the positions to the tokens of another image size, as torchvision does."""
    key = "backbone.encoder.pos_embedding"
    positions = state.get(key)
    if positions is None or positions.ndim != 3 or positions.shape[1] == expected.shape[1]:
        return state
    was, side = math.isqrt(positions.shape[1] - 1), math.isqrt(expected.shape[1] - 1)
    if was**2 + 1 != positions.shape[1] or positions.shape[2] != expected.shape[2]:
        return state  # another network: the check of the shapes says so
    notify(f"The positions of {was} x {was} patches are interpolated to {side} x {side}.")
    resized = interpolate_embeddings(side, 1, {"encoder.pos_embedding": positions})
    return {**state, key: resized["encoder.pos_embedding"]}


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Raise TrainingError for the first tensor that is missing, has another shape, or has no place."""
    for key, tensor in expected.items():
        if key not in state:
            raise TrainingError(f"The weights {name} do not fit: {key} {tuple(tensor.shape)} is missing.")
        if state[key].shape != tensor.shape:
            raise TrainingError(
                f"The weights {name} do not fit: {key}: expected {tuple(tensor.shape)}, got "
                f"{tuple(state[key].shape)}. Check --arch."
            )
    for key in state:
        if key not in expected:
            raise TrainingError(f"The weights {name} do not fit: {key} has no place in this network. Check --arch.")


def check_weights(arch: str, name: str) -> None:
    """Raise what `read_weights` raises for a wrong name or a missing file, without loading tensors.

    torchvision's weights are downloaded when torch hub's cache lacks them. "none" and models:/ addresses pass: the
    registry resolves those.
    """
    if name == "none" or name.startswith("models:/"):
        return
    if is_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            read_file(path)  # raises
        return
    weights = find_weights(arch, name)
    if not (Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]).is_file():
        download(weights, arch)
