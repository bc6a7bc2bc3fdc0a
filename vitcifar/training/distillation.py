"""Knowledge distillation: a trained version, the teacher, says of each image how likely it finds every class.

Hinton et al. 2015, "Distilling the knowledge in a neural network". The teacher sees what the student sees, augmented
and mixed alike (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent").
Letters in the shapes: B images of a micro-batch, K classes, V views of N images."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vitcifar.config import TrainConfig
from vitcifar.model.network import Classifier, Images
from vitcifar.training.batches import CachedFeatures, Mix, compute_views
from vitcifar.training.distributed import autocast, choose_precision
from vitcifar.training.loader import Loader, Request


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """The teacher's logits for what a step trains on; computed once when the images of every epoch are the same."""

    network: Classifier
    precision: str
    device: torch.device
    student_size: int  # the input size, in pixels, that a mix is made for
    cached: CachedFeatures | None = None  # logits (V, N, K)

    @torch.no_grad()
    def __call__(self, images: Images, request: Request, mix: Mix | None) -> Tensor:
        """The logits (B, K) of a request, whose images, with a mix followed by their partners, were loaded."""
        if self.cached is not None:
            return self.cached[request].to(self.device)
        pixels = self.network.preprocess(images)
        if mix:
            pixels = mix.scaled(self.network.image_size / self.student_size)(*pixels.chunk(2))
        with autocast(self.device, self.precision):
            return self.network.from_pixels(pixels).float()


def prepare_teacher(
    network: Classifier,
    loader: Loader,
    config: TrainConfig,
    *,
    sizes: tuple[int, int],
    student_size: int,
    notify: Callable[[str], object],
) -> Teacher:
    """Freeze the teacher, on the loader's device. `sizes` are the numbers of views (0 = none is cached) and of images.

    The views are those of the student's cached features, or one when images are neither augmented nor mixed.
    """
    network.to(loader.device).eval().requires_grad_(False)
    precision = choose_precision(config, loader.device, network.backbone.hidden_dim)
    teacher = Teacher(network, precision, loader.device, student_size)
    num_views, num_images = sizes
    if not num_views:
        notify("The teacher predicts the augmented images of every step.")
        return teacher
    notify(f"The teacher predicts once, {num_views} view{'s' * (num_views > 1)} of {num_images:,} training images.")
    shape = (num_views, num_images, len(network.class_names))
    cached = compute_views(network, loader, shape, precision=precision, title="Teacher")
    return dataclasses.replace(teacher, cached=cached)


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The sum over images of T^2 KL(softmax(targets / T) || softmax(logits / T)), both (B, K).

    The factor keeps the gradients' scale at any temperature (Hinton et al. 2015, section 2).
    """
    student, teacher = (functional.log_softmax(part / temperature, dim=1) for part in (logits, targets))
    return temperature**2 * functional.kl_div(student, teacher, reduction="sum", log_target=True)
