"""The quickstart's network and data, as `swavg bn` and `swavg landscape` take them by name:

swavg bn AVERAGE --model scripts/digits.py:network --data scripts/digits.py:training_batches
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINING, VALIDATION = 900, 300  # of 1797 images; the others are for the test
NOISE = 0.3  # standard deviation added to training pixels in [0, 1]
Batch = tuple[Tensor, Tensor]


def network() -> nn.Module:
    """A small convolutional network with batch-norm: 8 x 8 grey pixels to ten classes."""
    width = 8
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def _images(start: int, stop: int | None) -> Batch:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[start:stop]
    pixels = torch.from_numpy(data.data).float().view(-1, 1, 8, 8) / 16
    return pixels[order], torch.from_numpy(data.target)[order]


def training_images() -> Batch:
    return _images(0, TRAINING)


def validation_images() -> Batch:
    return _images(TRAINING, TRAINING + VALIDATION)


def test_images() -> Batch:
    return _images(TRAINING + VALIDATION, None)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to one pixel each way, and with noise."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    noise = torch.randn(images.shape, generator=generator)
    return torch.roll(images, (down, right), (2, 3)) + NOISE * noise


def batches(
    images: Tensor, labels: Tensor, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """One epoch in random order, augmented."""
    for chosen in torch.randperm(len(labels), generator=generator).split(size):
        yield augmented(images[chosen], generator), labels[chosen]


def training_batches() -> list[Batch]:
    """Two epochs of training images as the network saw them, the same in every call."""
    images, labels = training_images()
    generator = torch.Generator().manual_seed(0)
    return [batch for _ in range(2) for batch in batches(images, labels, 100, generator)]


def calibration_batches() -> list[Batch]:
    """Every training image once: quicker, for the many points of a landscape."""
    images, labels = training_images()
    return list(batches(images, labels, 50, torch.Generator().manual_seed(0)))


def validation_batches() -> list[Batch]:
    """The images as they are that nothing is trained on, and by which may be chosen."""
    return [validation_images()]


def test_batches() -> list[Batch]:
    """The test images as they are."""
    return [test_images()]
