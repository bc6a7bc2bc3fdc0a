"""Weights of timm and Hugging Face give the features that their own networks give."""

import re

import pytest
import torch
from support.networks import CLASSES, random_images
from torch import nn

from vitcifar.errors import TrainingError
from vitcifar.model.network import MEAN, Classifier, build_network
from vitcifar.model.vit import VisionTransformer, build_backbone
from vitcifar.model.weights import load_weights, read_file, select, tensors_of
from vitcifar.presets import resolve

timm = pytest.importorskip("timm")
SIZE, PATCH, WIDTH, BLOCKS, HEADS = 32, 8, 48, 2, 3


def randomized(network: nn.Module) -> nn.Module:
    """Every parameter random, biases and norms too: one that is forgotten or exchanged changes the features."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight")
            weight.copy_(1 + 0.2 * noise if norm else noise * (0.15 if weight.ndim == 2 else 0.4))
    return network.eval()


def timm_vit(name: str = "vit_base_patch16_224", **given) -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": BLOCKS, "num_heads": HEADS}
    return randomized(timm.create_model(name, **sizes, **{"num_classes": 3, **given}))


def hugging_face(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "image_size": SIZE}
    more = {"patch_size": PATCH, "intermediate_size": 4 * WIDTH, "num_labels": 3, "attn_implementation": "eager"}
    kind = re.match("ViTMAE|ViT|DeiT|Dinov2", name)[0]
    return randomized(getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**sizes, **more)))


def ours(image_size: int = SIZE) -> Classifier:
    backbone = VisionTransformer(image_size, PATCH, BLOCKS, HEADS, hidden_dim=WIDTH, mlp_dim=4 * WIDTH, num_classes=1)
    return Classifier(backbone, CLASSES).eval()


def load(value: object, network: Classifier | None = None) -> tuple[Classifier, list[str]]:
    """The network with the weights in `value`, and what was said."""
    messages: list[str] = []
    network = network or ours()
    found = select(tensors_of(value), name="w", notify=messages.append)
    load_weights(network, found.state, name="w", notify=messages.append)
    network.set_constants(**found.constants)
    return network, messages


@torch.no_grad()
def assert_same_features(network: Classifier, theirs) -> None:
    pixels = network.preprocess(torch.from_numpy(random_images(4, SIZE, SIZE)))
    found, expected = network.forward_features(pixels, BLOCKS + 1), theirs(pixels)
    assert expected.std() > 0.3 and (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


TIMM = {
    "ViT, AugReg, DINO and MAE": "vit_base_patch16_224",
    "DeiT": "deit_base_patch16_224",
    "DeiT III, with LayerScale and no position of the class token": "deit3_base_patch16_224",
    "DINOv2": "vit_base_patch14_dinov2",
}


@pytest.mark.parametrize("name", TIMM.values(), ids=TIMM)
def test_the_features_of_timms_networks_are_equal(name):
    theirs = timm_vit(name)
    network, messages = load(theirs.state_dict())
    assert_same_features(network, lambda pixels: theirs.forward_features(pixels)[:, 0])
    assert torch.equal(network.head.weight, theirs.head.weight) and not messages


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "Dinov2Model", "ViTMAEModel"])
def test_the_features_of_hugging_faces_networks_are_equal(tmp_path, name):
    theirs = hugging_face(name)
    theirs.save_pretrained(tmp_path)  # the names in a file are not those in memory
    body = getattr(theirs, "vit", theirs)
    if name == "ViTMAEModel":
        body.config.mask_ratio = 0.0
        options = {"noise": torch.arange(16.0).repeat(4, 1)}  # keeps the order of the patches
    else:
        options = {}
    for value in (read_file(tmp_path / "model.safetensors"), theirs.state_dict()):
        network, _ = load(value)
        assert network.backbone.encoder.ln.eps == theirs.config.layer_norm_eps
        assert_same_features(network, lambda pixels: body(pixels, **options).last_hidden_state[:, 0])
    if name == "ViTForImageClassification":
        assert torch.equal(network.head.weight, theirs.classifier.weight)


def test_a_tensor_that_is_exchanged_changes_the_features():
    theirs = timm_vit()
    state = theirs.state_dict()
    for one, other in (
        ("norm1.bias", "norm2.bias"),
        ("norm1.weight", "norm2.weight"),
        ("attn.proj.bias", "mlp.fc2.bias"),
    ):
        wrong = {**state, f"blocks.0.{one}": state[f"blocks.0.{other}"]}
        with pytest.raises(AssertionError, match="not close"):
            assert_same_features(load(wrong)[0], lambda pixels: theirs.forward_features(pixels)[:, 0])


WRAPPED = {
    "state_dict": (lambda state: {"state_dict": with_prefix(state, "module.model.")}, []),
    "ema": (lambda state: {"ema": with_prefix(state, "_orig_mod."), "epoch": 3}, []),
    "DINO": (
        lambda state: {
            "student": with_prefix({name: tensor + 1 for name, tensor in state.items()}, "module.backbone."),
            "teacher": {**with_prefix(state, "backbone."), "head.last_layer.weight_v": torch.ones(2, 2)},
        },
        ["Not used from w: student, head."],
    ),
    "MAE": (
        lambda state: {"model": {**state, "mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(2, 2)}},
        ["Not used from w: mask_token, decoder_embed."],
    ),
    "encoder": (lambda state: with_prefix(state, "net.encoder."), []),
}


def with_prefix(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(("wrap", "said"), WRAPPED.values(), ids=WRAPPED)
def test_wrappers_of_foreign_weights_are_read(wrap, said):
    theirs = timm_vit(num_classes=0)
    network, messages = load(wrap(theirs.state_dict()))
    assert_same_features(network, lambda pixels: theirs.forward_features(pixels)[:, 0])
    assert messages == [*said, "The head in w is replaced by a new one of 3 classes."]


def test_positions_of_foreign_weights_are_interpolated():
    network, messages = load(timm_vit().state_dict(), ours(image_size=48))
    assert network(torch.from_numpy(random_images(2, 48, 48))).shape == (2, 3)
    assert messages == ["The position embedding of 4 x 4 patches is interpolated to 6 x 6."]


REFUSED = {
    "distilled": (lambda: timm_vit("deit_base_distilled_patch16_224"), "has a distillation token.*without `distilled`"),
    "registers": (lambda: timm_vit(reg_tokens=2), "has register tokens"),
    "mean of the patches": (lambda: timm_vit(global_pool="avg"), "classifies by the mean of the patches"),
    "CLIP": (lambda: timm_vit(pre_norm=True), "normalises before its first block"),
    "norms of query and key": (lambda: timm_vit(qk_norm=True), r"does not have: blocks.0.attn.q_norm.weight"),
    "no bias": (lambda: timm_vit(qkv_bias=False), r"in_proj_bias: expected \(144,\), got nothing"),
    "Hugging Face's distilled": (lambda: hugging_face("DeiTModel"), "has a distillation token"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_networks_that_compute_something_else_are_refused_with_what_would_fit(make, message):
    with pytest.raises(TrainingError, match=message):
        load(make().state_dict())


def test_damaged_foreign_weights_are_named():
    state = timm_vit("deit3_base_patch16_224").state_dict()
    with pytest.raises(TrainingError, match="LayerScale that does not fit"):
        load({**state, "blocks.0.ls1.gamma": torch.ones(5)})
    with pytest.raises(TrainingError, match=r"mlp.0.weight: expected \(192, 48\), got nothing"):
        load({name: tensor for name, tensor in state.items() if name != "blocks.1.mlp.fc1.weight"})


@pytest.mark.parametrize("arch", ["vit_s_16", "vit_b_14"])
def test_sizes_that_torchvision_does_not_name_have_timms_shapes(arch):
    names = {"vit_s_16": "vit_small_patch16_224", "vit_b_14": "vit_base_patch14_dinov2"}
    with torch.device("meta"):
        theirs = timm.create_model(names[arch], img_size=224).state_dict()
        found = select(theirs, name="w", notify=lambda message: None).state
        expected = build_backbone(arch, 224).state_dict()
    shapes = {f"backbone.{name}": tensor.shape for name, tensor in expected.items() if not name.startswith("heads.")}
    assert {name: tensor.shape for name, tensor in found.items() if not name.startswith("head.")} == shapes


def test_normalization_and_epsilon_are_settings_of_the_network_that_can_be_recorded():
    network = build_network(resolve("digits", normalization="half"), CLASSES)
    assert network.constants == {"mean": [0.5] * 3, "std": [0.5] * 3, "layer_norm_eps": 1e-6}
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(network.preprocess(white), torch.ones(1, 3, 32, 32))
    assert build_network(resolve("digits"), CLASSES).constants["mean"] == list(MEAN)
    network.set_constants(layer_norm_eps=1e-12)
    assert {layer.eps for layer in network.backbone.modules() if isinstance(layer, nn.LayerNorm)} == {1e-12}
    again = build_network(resolve("digits"), CLASSES)
    again.set_constants(**network.constants)
    assert again.constants == network.constants
