"""Initial weights: from files, releases and torchvision."""

import argparse
import hashlib
import http.server
import io
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.networks import CLASSES, random_images, tiny
from support.training import settings, train

from vitcifar.errors import TrainingError
from vitcifar.model import weights as initial
from vitcifar.model.network import build_network, weights_sha256
from vitcifar.model.vit import models
from vitcifar.model.weights import cached_file, download
from vitcifar.presets import resolve
from vitcifar.training import checkpoint
from vitcifar.training.checkpoint import BEST, LAST


def test_a_state_dict_from_a_file_restores_the_network(tmp_path):
    network = tiny(seed=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = build_network(resolve("digits", weights=str(tmp_path / "weights.pt")), CLASSES)
    assert weights_sha256(again) == weights_sha256(network)


def test_torchvisions_keys_are_renamed_and_replacing_a_head_is_reported(tmp_path):
    source = tiny(seed=5)
    state = {name.removeprefix("backbone."): value for name, value in source.backbone.named_parameters(prefix="")}
    torch.save({**state, "heads.head.weight": torch.ones(9, 96), "heads.head.bias": torch.ones(9)}, tmp_path / "w.pt")
    messages: list[str] = []
    config = resolve("digits", weights=str(tmp_path / "w.pt"))
    network = build_network(config, CLASSES, notify=messages.append)
    assert torch.equal(network.backbone.class_token, source.backbone.class_token)
    assert network.head.weight.shape == (3, 96)
    assert "of 9 classes" in messages[0] and "of 3 classes" in messages[0]


def test_the_position_embedding_is_interpolated_to_another_image_size(tmp_path):
    torch.save(tiny(seed=5).state_dict(), tmp_path / "w.pt")
    messages: list[str] = []
    network = build_network(
        resolve("digits", weights=str(tmp_path / "w.pt"), image_size=64), CLASSES, notify=messages.append
    )
    assert network(torch.from_numpy(random_images(2, 64, 64))).shape == (2, 3)
    assert messages == ["The position embedding of 4 x 4 patches is interpolated to 8 x 8."]


def test_weights_of_a_release_start_with_a_new_temperature():
    source = tiny(seed=5)
    source.temperature.fill_(3.0)
    requested: list[str] = []

    def load_release(name: str):
        requested.append(name)
        return initial.Pretrained(source.state_dict(), {"mean": [0.5] * 3, "std": [0.25] * 3})

    network = build_network(resolve("digits", weights="models:/vitcifar/3"), CLASSES, load_release=load_release)
    assert requested == ["models:/vitcifar/3"]
    assert torch.equal(network.head.weight, source.head.weight)
    assert network.temperature == 1.0
    assert network.constants == {"mean": [0.5] * 3, "std": [0.25] * 3, "layer_norm_eps": 1e-6}


def test_wrong_shapes_say_expected_and_got(tmp_path):
    state = tiny().state_dict()
    torch.save({**state, "backbone.class_token": torch.zeros(1, 1, 7)}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"class_token: expected \(1, 1, 96\), got \(1, 1, 7\)"):
        tiny(weights=str(tmp_path / "w.pt"))


def test_missing_and_unexpected_weights_are_named(tmp_path):
    state = tiny().state_dict()
    torch.save({**state, "backbone.encoder.extra": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"extra: expected nothing, got \(2,\)"):
        tiny(weights=str(tmp_path / "w.pt"))
    del state["backbone.class_token"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"class_token: expected \(1, 1, 96\), got nothing"):
        tiny(weights=str(tmp_path / "w.pt"))


def plain_state() -> dict[str, torch.Tensor]:
    """A network as torchvision names it, with a head of three classes."""
    state = {name.removeprefix("backbone."): value for name, value in tiny(seed=5).state_dict().items()}
    heads = {name: state.pop(f"head.{name}") for name in ("weight", "bias")}
    del state["temperature"]
    return {**state, **{f"heads.head.{name}": value for name, value in heads.items()}}


def prefixed(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


def compiled_blocks(state: dict) -> dict:
    return {re.sub(r"(encoder_layer_\d)", r"\1._orig_mod", name): value for name, value in state.items()}


def own_state() -> dict:
    return tiny(seed=5).state_dict()


WRAPPED = {
    "torch.compile": lambda: prefixed(plain_state(), "_orig_mod."),
    "DataParallel of a compiled model": lambda: prefixed(plain_state(), "module._orig_mod."),
    "compiled DataParallel in Lightning": lambda: {"state_dict": prefixed(plain_state(), "model._orig_mod.module.")},
    "compiled blocks": lambda: compiled_blocks(plain_state()),
    "FSDP": lambda: prefixed(compiled_blocks(plain_state()), "_fsdp_wrapped_module."),
    "own network in DataParallel": lambda: prefixed(own_state(), "module."),
    "own network in a wrapper": lambda: {"net": prefixed(own_state(), "network.")},
    "backbone": lambda: prefixed(plain_state(), "backbone.") | {"epoch": 3},
    "encoder": lambda: prefixed(plain_state(), "encoder."),
    "net in model": lambda: prefixed(plain_state(), "model.net."),
    "model_state_dict": lambda: {"model_state_dict": plain_state(), "epoch": 3},
    "nested": lambda: {"checkpoint": {"model": {"state_dict": prefixed(plain_state(), "module.")}}},
    "args": lambda: {"model": plain_state(), "args": argparse.Namespace(lr=np.float64(0.1))},
    "ema alone": lambda: {"ema": {"shadow": plain_state(), "decay": 0.99}},
    "model beside its average": lambda: {"model_ema": prefixed(own_state(), "module."), "model": plain_state()},
    "head in a Sequential": lambda: {re.sub(r"heads\.head", "heads.1", k): v for k, v in plain_state().items()},
    "heads replaced": lambda: {k.replace("heads.head", "heads"): v for k, v in plain_state().items()},
    "half precision": lambda: {name: value.half() for name, value in plain_state().items()},
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_and_prefixes_of_other_tools_leave_the_same_weights(tmp_path, wrapped):
    path, value = tmp_path / "w.pt", wrapped()
    messages: list[str] = []
    torch.save(value, path)
    network = build_network(resolve("digits", weights=str(path)), CLASSES, notify=messages.append)
    expected = tiny(seed=5)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert messages == ([f"Not used from {path}: model_ema."] if "model_ema" in value else [])


def test_safetensors_are_weights_too(tmp_path):
    safetensors.torch.save_file(prefixed(plain_state(), "model."), tmp_path / "w.safetensors")
    network = tiny(weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(network.backbone.class_token, plain_state()["class_token"])


def test_what_is_left_over_beside_the_network_is_said(tmp_path):
    optimizer = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}}, "param_groups": []}
    model = {**prefixed(plain_state(), "model."), "criterion.weight": torch.ones(3)}
    torch.save({"state_dict": model, "optimizer": optimizer}, tmp_path / "w.pt")
    messages: list[str] = []
    build_network(resolve("digits", weights=str(tmp_path / "w.pt")), CLASSES, notify=messages.append)
    assert messages == [f"Not used from {tmp_path / 'w.pt'}: criterion, optimizer."]


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_damage_that_no_checksum_finds_ends_in_a_network_or_in_one_sentence(tmp_path, kind):
    path, chance, outcomes = tmp_path / "w.pt", random.Random(1), []
    if kind == "legacy":
        torch.save({"model": plain_state()}, path, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(plain_state(), path)
    whole = path.read_bytes()
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3])):
            data[chance.randrange(6000)] ^= 1 << chance.randrange(8)  # the names, shapes and types
        path.write_bytes(data)
        try:
            outcomes.append(type(tiny(weights=str(path))).__name__)
        except TrainingError as error:
            outcomes.append("\n" in str(error))
    assert set(outcomes) <= {"Classifier", False}


def test_two_networks_in_one_file_are_ambiguous(tmp_path):
    torch.save({"first": plain_state(), "second": plain_state()}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"holds 2 vision transformers \(first, second\): save one of them alone"):
        tiny(weights=str(tmp_path / "w.pt"))


def test_a_file_that_contains_itself_is_read_once(tmp_path):
    state = plain_state()
    loop: dict = {}
    loop["self"] = loop
    torch.save({"model": state, "same": state, "args": loop}, tmp_path / "w.pt")
    assert torch.equal(tiny(weights=str(tmp_path / "w.pt")).backbone.class_token, state["class_token"])


@pytest.mark.parametrize("layers", ["all", "1", "head"])
def test_the_checkpoints_of_a_run_are_weights_and_a_partial_one_says_what_to_type(tmp_path, layers):
    network, _ = train(tmp_path, settings(train_layers=layers, batch_size=8, epochs=1, ema_decay=0.5))
    for path in (tmp_path / BEST, tmp_path / LAST):
        if layers == "all":
            started = build_network(resolve("digits", weights=str(path)), network.class_names).state_dict()
            weights = checkpoint.load(path)["weights"]
            assert set(weights) == {name for name, _ in network.named_parameters()}
            assert all(torch.equal(started[name], weight) for name, weight in weights.items())
        else:
            with pytest.raises(TrainingError, match=r"trained (the head )?alone.*: type --weights models:/NAME/V"):
                tiny(weights=str(path))


OTHERS = {
    "a convolutional network": (
        ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"],
        "other names",
    ),
    "CLIP": (
        ["visual.class_embedding", "visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight"],
        "other names",
    ),
}


@pytest.mark.parametrize(("names", "message"), OTHERS.values(), ids=OTHERS)
def test_weights_of_another_network_are_named(tmp_path, names, message):
    torch.save({"model": {name: torch.ones(2) for name in names}}, tmp_path / "w.pt")
    with pytest.raises(
        TrainingError, match=rf"holds no vision transformer with the names of .*but {message}: model.{names[0]}"
    ):
        tiny(weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("value", [{"epoch": 3}, [1, 2], torch.ones(3), {"model": argparse.Namespace(a=1)}])
def test_a_file_without_a_network_is_an_error(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"holds no tensors, but a|holds no vision transformer"):
        tiny(weights=str(tmp_path / "w.pt"))


def test_weights_of_another_architecture_name_the_one_that_they_fit(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        TrainingError, match=r"class_token: expected \(1, 1, 768\), got \(1, 1, 96\).*type --arch vit_tiny"
    ):
        build_network(resolve("digits", arch="vit_b_32", weights=str(tmp_path / "w.pt")), CLASSES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder.pos_embedding": torch.ones(1, 12, 96)}, r"pos_embedding: expected \(1, 17, 96\), got \(1, 12, 96\)"),
        ({"encoder.pos_embedding": torch.ones(1, 0, 96)}, r"got \(1, 0, 96\)"),
        ({"encoder.pos_embedding": torch.ones(2, 65, 96)}, r"got \(2, 65, 96\)"),
        ({"encoder.ln.weight": torch.ones(96, dtype=torch.int32)}, r"expected \(96,\), got \(96,\) of torch.int32"),
        ({"encoder.ln.weight": torch.ones(96).to_sparse()}, r"expected \(96,\), got nothing"),
        ({"encoder.ln.weight": torch.full((96,), torch.nan)}, r"are not finite in backbone.encoder.ln.weight"),
        ({"encoder.ln.weight": torch.full((96,), 1e300, dtype=torch.float64)}, r"are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, changed, message):
    torch.save({**plain_state(), **changed}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=message) as caught:
        tiny(weights=str(tmp_path / "w.pt"))
    assert "type --arch" not in str(caught.value)


@pytest.mark.parametrize(
    "changed", [{"weight": torch.ones(())}, {"weight": torch.ones(5, 96), "bias": torch.ones(5)}, {"bias": None}]
)
def test_a_head_that_does_not_fit_is_replaced_and_said(tmp_path, changed):
    state = {**plain_state(), **{f"heads.head.{name}": tensor for name, tensor in changed.items()}}
    torch.save(state, tmp_path / "w.pt")
    messages: list[str] = []
    network = build_network(resolve("digits", weights=str(tmp_path / "w.pt")), CLASSES, notify=messages.append)
    assert not network.head.weight.any()
    assert len(messages) == 1 and messages[0].endswith("is replaced by a new one of 3 classes.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/w.pt", "is an address: download the file"),
        ("w.safetensors", "There is no file w.safetensors with weights"),
        ("w" * 300 + ".pt", "There is no file"),
        ("w\0.pt", "There is no file"),
    ],
)
def test_what_is_no_file_is_said(name, message):
    with pytest.raises(TrainingError, match=message):
        tiny(weights=name)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match="is a folder: name the file with weights that is in it"):
        tiny(weights=str(tmp_path))


class Pretrained:
    """Weights at an address, as torchvision's enum has them."""

    name = "IMAGENET1K_V1"

    def __init__(self, content: bytes, host: str = "http://127.0.0.1:9") -> None:  # nothing listens there
        self.url = f"{host}/vit_b_16-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


CONTENT = saved({"class_token": torch.ones(1)})


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "hub" / "checkpoints" / Pretrained(CONTENT).url.rsplit("/", 1)[1]


def test_weights_that_cannot_be_downloaded_say_what_to_type(cache):
    with pytest.raises(TrainingError) as caught:
        download(Pretrained(CONTENT), "vit_b_16")
    assert "could not be downloaded from" in str(caught.value) and "refused" in str(caught.value)
    assert f"--preset digits, --weights none, or put the file at {cache}." in str(caught.value)


def test_weights_in_torch_hubs_cache_are_used_without_a_network(cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(CONTENT)
    assert download(Pretrained(CONTENT), "vit_b_16") == {"class_token": torch.ones(1)}


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", CONTENT[:-9], saved({"class_token": torch.zeros(1)})]
)
def test_another_file_in_torch_hubs_cache_is_not_taken_for_pretrained_weights(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        download(Pretrained(CONTENT), "vit_b_16")
    assert str(caught.value).startswith(f"{cache} is not IMAGENET1K_V1 of vit_b_16, or is damaged")
    assert str(caught.value).endswith("delete the file and run again.")


def test_the_names_of_torchvisions_weights_carry_their_hash():
    for arch in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"):
        for weights in models.get_model_weights(arch):
            assert re.search(r"-[0-9a-f]{8}\.pth$", cached_file(weights).name)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(405)  # some servers answer nothing but GET
        self.end_headers()

    def do_GET(self):
        self.answer()

    def whole(self, content: bytes = CONTENT):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(content)

    answer = whole

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Handler.whole, ""),
        (lambda self: self.send_error(404), "HTTP Error 404"),
        (lambda self: self.whole(CONTENT[:100]), "invalid hash value|IncompleteRead"),
        (lambda self: self.whole(bytes(len(CONTENT))), "invalid hash value"),
        (lambda self: self.wfile.write(b"nonsense\r\n"), "BadStatusLine nonsense"),
    ],
    ids=["whole", "missing", "cut off", "wrong", "nonsense"],
)
def test_a_download_is_whole_and_of_the_hash_in_its_name_or_leaves_nothing(cache, answer, reason, monkeypatch):
    monkeypatch.setattr(Handler, "answer", answer)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        weights = Pretrained(CONTENT, f"http://127.0.0.1:{server.server_port}")
        if not reason:
            assert download(weights, "vit_b_16") == {"class_token": torch.ones(1)}
        else:
            with pytest.raises(TrainingError, match=rf"could not be downloaded from .*\(.*{reason}.*\): type"):
                download(weights, "vit_b_16")
        server.shutdown()
    assert [path.name for path in cache.parent.iterdir()] == ([] if reason else [cache.name])
