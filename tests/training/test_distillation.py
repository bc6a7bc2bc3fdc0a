"""Learning from a teacher: the loss, the images it sees, and a resume bit for bit."""

import numpy as np
import pytest
import torch
from support.training import CLASSES, Logged, settings, shades
from torch.nn import functional

from vitcifar.model.network import build_network, weights_sha256
from vitcifar.training.batches import AugmentedImages, Mix, sample_mix
from vitcifar.training.checkpoint import LAST
from vitcifar.training.distillation import Teacher, distillation_loss, prepare_teacher
from vitcifar.training.loader import Loader
from vitcifar.training.loop import fit

TEACHER = {"teacher": "models:/vitcifar/1"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    network = build_network(settings(image_size=64), CLASSES)
    config = settings(image_size=64, epochs=2)
    fit(network, shades(8, seed=2), shades(4, seed=3), config, log=Logged(), folder=tmp_path_factory.mktemp("teacher"))
    return network


def taught(folder, teacher, *, log=None, resume=None, **given):
    config = settings(**TEACHER, **given)
    network = build_network(config, CLASSES)
    data = (shades(8), shades(4, seed=1))
    fit(network, *data, config, log=Logged() if log is None else log, folder=folder, resume=resume, teacher=teacher)
    return network


def test_the_loss_is_the_divergence_from_the_teacher_at_the_temperature():
    logits, targets = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    loss = distillation_loss(logits, targets, 3.0)
    p, q = torch.softmax(targets / 3, dim=1), torch.softmax(logits / 3, dim=1)
    torch.testing.assert_close(loss, 9 * (p * (p / q).log()).sum())
    assert distillation_loss(targets, targets, 2.0).abs() < 1e-6
    loss.backward()  # at a high temperature the gradient is that of matching logits: (z - v) / K for centred ones
    centred = [part - part.mean(dim=1, keepdim=True) for part in (logits.detach(), targets)]
    high = torch.autograd.grad(distillation_loss(logits, targets, 1e3), logits)[0]
    torch.testing.assert_close(high, (centred[0] - centred[1]) / 3, atol=1e-2, rtol=1e-2)


def test_the_weight_mixes_the_losses_of_teacher_and_labels(tmp_path, teacher):
    losses = []
    for weight in (0.0, 0.25, 1.0):
        log = Logged()
        taught(tmp_path / str(weight), teacher, log=log, epochs=1, batch_size=24, distillation_weight=weight)
        losses.append(log["step/loss", 1])
    log = Logged()
    fit(build_network(settings(), CLASSES), shades(8), shades(4, seed=1), settings(epochs=1, batch_size=24), log=log,
        folder=tmp_path / "plain")  # fmt: skip
    assert losses[0] == log["step/loss", 1] != losses[2]
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2], rel=1e-5)


def test_with_the_teachers_loss_alone_the_student_learns_what_the_teacher_says_and_not_the_labels(tmp_path, teacher):
    wrong = shades(16)
    wrong = type(wrong)(images=wrong.images, labels=(wrong.labels + 1) % 3, class_names=CLASSES, ids=wrong.ids)
    config = settings(**TEACHER, distillation_weight=1.0, epochs=8)
    network = build_network(config, CLASSES)
    fit(network, wrong, shades(4, seed=1), config, log=Logged(), folder=tmp_path, teacher=teacher)
    images = torch.from_numpy(np.stack(shades(8, seed=5).images))
    with torch.no_grad():
        assert (network(images).argmax(1) == teacher(images).argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("given", [
    {"augmentation": "crop-flip", "mixup": 0.4, "cutmix": 1.0},
    {"train_layers": "head", "augmentation": "crop-flip", "num_views": 2},
    {"accumulation_steps": 2},
], ids=["computed in every step", "cached with the student's features", "cached"])  # fmt: skip
def test_a_run_with_a_teacher_resumes_bit_for_bit(tmp_path, teacher, given):
    whole = weights_sha256(taught(tmp_path / "whole", teacher, **given))

    class Stopped(Exception):
        pass

    def stop(step, metrics):
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        taught(tmp_path / "stopped", teacher, log=stop, **given)
    assert weights_sha256(taught(tmp_path / "stopped", teacher, resume=tmp_path / "stopped" / LAST, **given)) == whole


def test_the_teacher_sees_the_augmented_images_of_the_student(teacher):
    dataset, device = shades(8), torch.device("cpu")
    config = settings(**TEACHER, augmentation="crop-flip", precision="fp32")
    loader = Loader(AugmentedImages(dataset, "crop-flip", 0), 0, device)
    request, messages = (2, np.arange(5)), []
    options = {"student_size": 32, "notify": messages.append}
    cached = prepare_teacher(teacher, loader, config, sizes=(2, len(dataset)), **options)
    computed = prepare_teacher(teacher, loader, config, sizes=(0, len(dataset)), **options)
    images = next(loader([request]))
    expected = teacher(images).detach()
    torch.testing.assert_close(computed(images, request, None), expected)
    torch.testing.assert_close(cached(images, request, None), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(cached(images, (1, request[1]), None), expected, atol=1e-3)
    assert messages[0] == "The teacher predicts once, 2 views of 24 training images."


def test_a_mix_covers_the_same_part_of_the_image_at_the_teachers_size(teacher):
    mix = next(found for key in range(9) if (found := sample_mix(settings(cutmix=1.0), (key,), 32)).box[0].stop > 8)
    pixels, partners = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    large = [functional.interpolate(part, scale_factor=2) for part in (pixels, partners)]
    assert torch.equal(mix.scaled(2.0)(*large), functional.interpolate(mix(pixels, partners), scale_factor=2))
    blend = Mix(0.3, None)
    images = torch.from_numpy(np.stack(shades(2).images))
    seen = Teacher(teacher, "fp32", torch.device("cpu"), 32)(images, (1, np.arange(3)), blend)
    small = [teacher.preprocess(images[half]) for half in (slice(0, 3), slice(3, 6))]
    with torch.no_grad():
        torch.testing.assert_close(seen, teacher.from_pixels(blend(*small)))
    functional.softmax(seen, dim=1)
