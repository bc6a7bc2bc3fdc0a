"""The network: preprocessing, a vision transformer and a head, from uint8 images of any size to logits.

Letters in the shapes: B images, H and W their sides, S the network's own side, T tokens (1 class token + patches),
D hidden size, K classes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError
from vitcifar.model.vit import VisionTransformer, build_backbone, own_image_size
from vitcifar.model.weights import check_weights, place_weights, read_weights

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as the trained backbones were given them
STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    """Resize (bilinear, antialiased) to the network's side and normalise: the one preprocessing of every door."""

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 (B, H, W, 3), or a list of (H, W, 3) of mixed sizes -> float (B, 3, S, S)."""
        if not isinstance(images, Tensor):
            return torch.cat([self(image[None]) for image in images])
        pixels = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        size = (self.image_size, self.image_size)
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        return (pixels - self.mean) / self.std  # (B, 3, S, S)


class Classifier(nn.Module):
    """Preprocessing + vision transformer + head. It can be cut after any block, so that frozen parts run once."""

    temperature: Tensor

    def __init__(self, backbone: VisionTransformer, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.image_size = backbone.image_size
        self.preprocess = Preprocess(backbone.image_size)
        self.backbone = backbone
        self.backbone.heads = nn.Sequential()  # ImageNet's head goes, ours stands beside the backbone
        self.head = nn.Linear(backbone.hidden_dim, len(self.class_names))
        nn.init.zeros_(self.head.weight)  # as torchvision starts its heads
        nn.init.zeros_(self.head.bias)
        self.register_buffer("temperature", torch.ones(()))  # calibration: probabilities = softmax(logits / T)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.backbone.encoder.layers.children()]

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 (B, H, W, 3), or a list of (H, W, 3) -> logits (B, K)."""
        return self.from_pixels(self.preprocess(images))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, S, S) -> logits (B, K)."""
        return self.forward_head(self.forward_features(pixels, 0), 0)

    def embed(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 (B, H, W, 3), or a list of (H, W, 3) -> what the head sees (B, D)."""
        return self.forward_features(self.preprocess(images), len(self.blocks) + 1)

    def forward_features(self, pixels: Tensor, depth: int) -> Tensor:
        """Pixels (B, 3, S, S) -> tokens (B, T, D) after `depth` blocks; one more than there are: (B, D), ready for
        the head."""
        backbone = self.backbone
        tokens = backbone._process_input(pixels)  # (B, T - 1, D)
        tokens = torch.cat([backbone.class_token.expand(len(tokens), -1, -1), tokens], dim=1)  # (B, T, D)
        tokens = backbone.encoder.dropout(tokens + backbone.encoder.pos_embedding)
        for block in self.blocks[:depth]:
            tokens = block(tokens)
        return backbone.encoder.ln(tokens)[:, 0] if depth > len(self.blocks) else tokens

    def forward_head(self, tokens: Tensor, depth: int) -> Tensor:
        """What `forward_features` gave for the same depth -> logits (B, K)."""
        if depth <= len(self.blocks):
            for block in self.blocks[depth:]:
                tokens = block(tokens)
            tokens = self.backbone.encoder.ln(tokens)[:, 0]  # (B, D)
        return self.head(tokens)


class Released(nn.Module):
    """A classifier as it is exported: image uint8 (B, H, W, 3) -> (logits, probabilities), both (B, K)."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return logits, torch.softmax(logits / self.network.temperature, dim=-1)


def build_network(
    config: TrainConfig,
    class_names: Sequence[str],
    *,
    load_release: Callable[[str], Mapping[str, Tensor]] | None = None,
    notify: Callable[[str], None] = lambda sentence: None,
) -> Classifier:
    """The network that the config asks for, with its weights, and only what trains asking for gradients.

    `load_release` turns "models:/NAME/VERSION" into a state dict; `say` hears what the user should know (a head that
    was replaced). Raises ConfigError for a name that is not there and TrainingError for weights that cannot be had.
    """
    image_size = config.image_size or own_image_size(config.arch, config.weights)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(config.seed)
        network = Classifier(build_backbone(config.arch, image_size), class_names)
    if config.weights != "none":
        weights = read_weights(config.arch, config.weights, load_release=load_release)
        place_weights(network, weights, name=config.weights, notify=notify)
    set_trainable(network, config.train_layers)
    return network


def set_trainable(network: Classifier, train_layers: str) -> None:
    """Let gradients into the head, the last n blocks with the norm above them, or everything."""
    num_blocks = len(network.blocks)
    if train_layers.isdecimal() and int(train_layers) > num_blocks:
        raise ConfigError(f"train_layers is {train_layers}, but there are {num_blocks} blocks: type 1 to {num_blocks}.")
    network.requires_grad_(train_layers == "all")
    network.head.requires_grad_(True)
    if train_layers.isdecimal():
        network.backbone.encoder.ln.requires_grad_(True)
        for block in network.blocks[num_blocks - int(train_layers) :]:
            block.requires_grad_(True)


def frozen_depth(network: Classifier, train_layers: str) -> int | None:
    """How many blocks nothing trains in, for `forward_features`; None when everything trains."""
    if train_layers == "all":
        return None
    num_blocks = len(network.blocks)
    return num_blocks + 1 if train_layers == "head" else num_blocks - int(train_layers)


def count_parameters(network: nn.Module, *, trained: bool = False) -> int:
    """Numbers in the network's weights; with `trained` only those that training changes."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trained)


def weights_sha256(network: nn.Module) -> str:
    """One fingerprint of every weight and buffer: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_network(config: TrainConfig, class_names: Sequence[str]) -> None:
    """Raise ConfigError or TrainingError for settings that cannot be built, without allocating or loading weights."""
    check_weights(config.arch, config.weights)
    image_size = config.image_size or own_image_size(config.arch, config.weights)
    with torch.device("meta"):
        build_network(dataclasses.replace(config, weights="none", image_size=image_size), class_names)
