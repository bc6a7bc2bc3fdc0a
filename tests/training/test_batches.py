"""Batches: every image once an epoch, whatever the number of micro-batches, processes and workers."""

import dataclasses

from PIL import Image
from support.training import CLASSES, Logged, assert_same_losses, losses, settings, shades, train

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.files import ImageFiles
from vitcifar.model.network import weights_sha256
from vitcifar.training.batches import plan_epoch


def test_micro_batches_give_the_losses_of_the_full_batch(tmp_path):
    given = {"batch_size": 12, "mixup": 0.4, "cutmix": 0.4, "augmentation": "crop"}
    full = losses(tmp_path / "full", **given)
    assert_same_losses(full, losses(tmp_path / "micro", **given, accumulation_steps=4))


def test_every_image_is_taken_once_an_epoch_for_any_number_of_processes():
    for num_processes in (1, 2, 3):
        taken = []
        for rank in range(num_processes):
            plan = plan_epoch(23, settings(accumulation_steps=2), 1, rank=rank, num_processes=num_processes)
            assert [batch.size for batch in plan] == [8, 8, 7]
            taken += [index for batch in plan for indices, _ in batch.micro_batches for index in indices]
        assert sorted(taken) == list(range(23))


def test_the_order_differs_between_epochs_and_seeds():
    orders = [
        tuple(plan_epoch(50, settings(seed=seed, batch_size=50), epoch, rank=0, num_processes=1)[0].micro_batches[0][0])
        for seed, epoch in ((0, 1), (0, 2), (1, 1), (1, 2))
    ]
    assert len(set(orders)) == 4


def mixed_sizes() -> ImageDataset:
    data = shades(8)
    images = [image[: 5 + index % 4] for index, image in enumerate(data.images)]
    return ImageDataset(images=images, labels=data.labels, class_names=CLASSES, ids=data.ids)


def test_images_of_mixed_sizes_train(tmp_path):
    log = Logged()
    train(tmp_path, log=log, dataset=mixed_sizes())
    assert log["train/loss", 9] < log["train/loss", 3]


def test_images_that_are_decoded_on_demand_give_the_same_weights(tmp_path):
    data = shades(8)
    paths = [tmp_path / f"{index}.png" for index in range(len(data))]
    for image, path in zip(data.images, paths, strict=True):
        Image.fromarray(image).save(path)
    on_demand = dataclasses.replace(data, images=ImageFiles(paths))
    config = settings(augmentation="crop-flip", num_workers=1, epochs=2)
    networks = [
        train(tmp_path / name, config, dataset=dataset)[0] for name, dataset in (("held", data), ("decoded", on_demand))
    ]
    assert weights_sha256(networks[0]) == weights_sha256(networks[1])


def test_mixed_sizes_train_with_workers_augmentation_mixing_and_micro_batches(tmp_path):
    given = {"augmentation": "crop-flip", "mixup": 0.2, "cutmix": 1.0, "num_workers": 2, "accumulation_steps": 2}
    _, outcome = train(tmp_path, settings(**given), dataset=mixed_sizes())
    assert outcome.num_epochs == 3
