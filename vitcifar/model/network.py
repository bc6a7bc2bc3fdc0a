"""The network: preprocessing, a vision transformer and a head, from uint8 images of any size to logits.

It is defined twice: here, traced by torch.export, and by hand in release/onnx_graph.py. A new layer is written in both.
Letters in the shapes: B images, H and W their sides, S the network's input size, T tokens (1 class token + patches),
D hidden size, K classes."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError
from vitcifar.model import vit, weights
from vitcifar.model.lora import projections
from vitcifar.model.token_merging import run_blocks, token_counts
from vitcifar.model.vit import VisionTransformer
from vitcifar.model.weights import Pretrained

MEAN = (0.485, 0.456, 0.406)  # ImageNet's: the pretrained backbones expect them
STD = (0.229, 0.224, 0.225)
NORMALIZATIONS = {"imagenet": (MEAN, STD), "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}

Images = Tensor | Sequence[Tensor]  # uint8 (B, H, W, 3), or a list of (H, W, 3) when sizes are mixed


class Preprocess(nn.Module):
    """Resize (bilinear, antialiased) to the network's input size and normalise, in training, ONNX and serving alike."""

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the three colours, of pixels between 0 and 1."""
        values = [[float(f"{value:.7g}") for value in part.flatten().tolist()] for part in (self.mean, self.std)]
        return tuple(values[0]), tuple(values[1])

    def forward(self, images: Images) -> Tensor:
        """uint8 images -> float (B, 3, S, S)."""
        if not isinstance(images, Tensor):
            return torch.cat([self(image[None]) for image in images])
        pixels = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        size = (self.image_size, self.image_size)
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        return (pixels - self.mean) / self.std  # (B, 3, S, S)


class Classifier(nn.Module):
    """Preprocessing + vision transformer + head. The forward pass can be split after any block, so that frozen
    features are computed once."""

    temperature: Tensor

    def __init__(
        self,
        backbone: VisionTransformer,
        class_names: Sequence[str],
        token_merging: int = 0,
        merging_schedule: str = "constant",
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.token_merging = token_merging  # pairs of tokens that a block merges; 0 = none
        self.merging_schedule = merging_schedule
        self.image_size = backbone.image_size
        self.preprocess = Preprocess(backbone.image_size)
        self.backbone = backbone
        self.backbone.heads = nn.Sequential()  # the pretrained head is dropped; ours is a module beside the backbone
        self.head = nn.Linear(backbone.hidden_dim, len(self.class_names))
        nn.init.zeros_(self.head.weight)  # torchvision's initialisation of ViT heads
        nn.init.zeros_(self.head.bias)
        self.register_buffer("temperature", torch.ones(()))  # calibration: probabilities = softmax(logits / T)

    @property
    def constants(self) -> dict[str, Any]:
        """What the network computes with besides its weights, as a release records it."""
        mean, std = self.preprocess.normalization
        return {"mean": list(mean), "std": list(std), "layer_norm_eps": self.backbone.encoder.ln.eps}

    def set_constants(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        layer_norm_eps: float | None = None,
    ) -> None:
        """Set those of `constants` that are given."""
        for buffer, values in ((self.preprocess.mean, mean), (self.preprocess.std, std)):
            if values is not None:
                buffer.copy_(torch.tensor(values).view(1, 3, 1, 1))
        for module in self.backbone.modules():
            if isinstance(module, nn.LayerNorm) and layer_norm_eps is not None:
                module.eps = layer_norm_eps

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.backbone.encoder.layers.children()]

    @property
    def token_counts(self) -> list[int]:
        """Tokens that enter each block, and those that leave the last one."""
        return token_counts(self.backbone.seq_length, self.token_merging, len(self.blocks), self.merging_schedule)

    def forward(self, images: Images) -> Tensor:
        """uint8 images -> logits (B, K)."""
        return self.from_pixels(self.preprocess(images))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, S, S) -> logits (B, K)."""
        return self.forward_head(self.forward_features(pixels, 0), 0)

    def embed(self, images: Images) -> Tensor:
        """uint8 images -> the input of the head (B, D)."""
        return self.forward_features(self.preprocess(images), len(self.blocks) + 1)

    def forward_features(self, pixels: Tensor, depth: int) -> Tensor:
        """Pixels (B, 3, S, S) -> tokens (B, T, D) after `depth` blocks, or with one more the embedding (B, D).

        With token merging the tokens are (B, T, D + 1): the last column is the number of patches in each.
        """
        backbone = self.backbone
        tokens: Tensor = backbone._process_input(pixels)  # (B, T - 1, D)
        tokens = torch.cat([backbone.class_token.expand(len(tokens), -1, -1), tokens], dim=1)  # (B, T, D)
        tokens = backbone.encoder.dropout(tokens + backbone.encoder.pos_embedding)
        if self.token_merging:
            tokens = functional.pad(tokens, (0, 1), value=1.0)
        tokens = self._run_blocks(tokens, 0, depth)
        return self._embedding(tokens) if depth > len(self.blocks) else tokens

    def forward_head(self, tokens: Tensor, depth: int) -> Tensor:
        """The output of `forward_features` for the same depth -> logits (B, K)."""
        if depth <= len(self.blocks):
            tokens = self._embedding(self._run_blocks(tokens, depth, len(self.blocks)))
        logits: Tensor = self.head(tokens)
        return logits

    def features_shape(self, depth: int) -> tuple[int, ...]:
        """Shape of the output of `forward_features` at this depth for one image."""
        if depth > len(self.blocks):
            return (self.backbone.hidden_dim,)
        return self.token_counts[depth], self.backbone.hidden_dim + (self.token_merging > 0)

    def _run_blocks(self, tokens: Tensor, first: int, stop: int) -> Tensor:
        blocks = self.blocks[first:stop]
        if self.token_merging:
            return run_blocks(blocks, tokens, self.token_counts[first : stop + 1])
        for block in blocks:
            tokens = block(tokens)
        return tokens

    def _embedding(self, tokens: Tensor) -> Tensor:
        tokens = tokens[..., :-1] if self.token_merging else tokens
        normed: Tensor = self.backbone.encoder.ln(tokens)
        return normed[:, 0]  # (B, D), the class token


class Released(nn.Module):
    """The exported form: image uint8 (B, H, W, 3) -> logits, probabilities, both (B, K), and the embedding (B, D)."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding = self.network.embed(image)
        logits = self.network.head(embedding)
        return logits, torch.softmax(logits / self.network.temperature, dim=-1), embedding


def build_network(
    config: TrainConfig,
    class_names: Sequence[str],
    *,
    load_release: Callable[[str], Pretrained] | None = None,
    notify: Callable[[str], object] = lambda message: None,
) -> Classifier:
    """Build the network that the config describes, load its weights, and freeze what `train_layers` leaves out.

    `load_release` reads the weights of "models:/NAME/VERSION"; `notify` receives messages such as that a head was
    replaced. Raises ConfigError for an unknown name and TrainingError for weights that cannot be read or downloaded.
    """
    image_size = config.image_size or vit.default_image_size(config.arch, config.weights)
    with torch.random.fork_rng(devices=[]):  # the caller's random state does not change
        torch.manual_seed(config.seed)
        backbone = vit.build_backbone(config.arch, image_size)
        network = Classifier(backbone, class_names, config.token_merging, config.merging_schedule)
    if config.weights != "none":
        found = weights.read_weights(config.arch, config.weights, load_release=load_release, notify=notify)
        weights.load_weights(network, found.state, name=config.weights, notify=notify)
        network.set_constants(**found.constants)
        if config.normalization == "auto" and "layer_norm_eps" in found.constants and "mean" not in found.constants:
            notify("Pixels are normalised as for ImageNet: weights of AugReg or Google need --normalization half.")
    if config.normalization != "auto":
        mean, std = NORMALIZATIONS[config.normalization]
        network.set_constants(mean=mean, std=std)
    set_trainable(network, config.train_layers)
    return network


def set_trainable(network: Classifier, train_layers: str) -> None:
    """Enable gradients for the head, for the last n blocks with the norm above them, or for all layers."""
    num_blocks = len(network.blocks)
    if train_layers.isdecimal() and int(train_layers) > num_blocks:
        raise ConfigError(f"train_layers is {train_layers}, but there are {num_blocks} blocks: type 1 to {num_blocks}.")
    network.requires_grad_(train_layers == "all")
    network.head.requires_grad_(True)
    if train_layers.isdecimal():
        network.backbone.encoder.ln.requires_grad_(True)
        for block in network.blocks[frozen_depth(network, train_layers) :]:
            block.requires_grad_(True)


def frozen_depth(network: Classifier, train_layers: str) -> int | None:
    """Depth, for `forward_features`, up to which all layers are frozen; None when every layer trains."""
    if train_layers == "all":
        return None
    num_blocks = len(network.blocks)
    return num_blocks + 1 if train_layers == "head" else num_blocks - int(train_layers)


@contextlib.contextmanager
def evaluation_mode(network: Classifier, device: torch.device | str | None = None) -> Iterator[Classifier]:
    """The network in evaluation mode, on `device` if one is given; then back in its former mode, on its former device.

    Gradients are the caller's: combine it with `torch.no_grad()`.
    """
    was_training, was_on = network.training, network.temperature.device
    try:
        yield network.to(device or was_on).eval()
    finally:
        network.to(was_on).train(was_training)


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(weight.numel() for weight in network.parameters())


def count_trained(network: Classifier, train_layers: str, lora_rank: int) -> int:
    """Number of parameters that training changes; with LoRA the head's and the low-rank updates'."""
    if not lora_rank:
        return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    blocks = network.blocks[frozen_depth(network, train_layers) or 0 :]
    sides = [side for module, name in projections(blocks) for side in getattr(module, name).shape]
    return lora_rank * int(sum(sides)) + count_parameters(network.head)


def weights_sha256(network: nn.Module) -> str:
    """sha256 over every weight and buffer: names, shapes, types and bytes."""
    return tensors_sha256(network.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over tensors in the order of their names: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_network(config: TrainConfig, class_names: Sequence[str]) -> None:
    """Raise ConfigError or TrainingError for settings that cannot be built, or weights that cannot be read.

    The network is not allocated; weights in a registry are not read, their name is resolved there.
    """
    if config.weights != "none" and not config.weights.startswith("models:/"):
        weights.read_weights(config.arch, config.weights)
    image_size = config.image_size or vit.default_image_size(config.arch, config.weights)
    with torch.device("meta"):
        build_network(dataclasses.replace(config, weights="none", image_size=image_size), class_names)
