"""A run of transformers' Trainer on scikit-learn's digits, as people have them: a constant learning
rate and a checkpoint of every epoch, in trainer-run. README's recipe averages it."""

from __future__ import annotations

import digits
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

EPOCHS, RATE = 40, 3e-3


def build() -> ViTForImageClassification:
    """A small vision transformer."""
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, num_labels=10, hidden_size=48,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    )  # fmt: skip
    return ViTForImageClassification(config)


def examples(images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    pairs = zip(images, labels, strict=True)
    return [{"pixel_values": image, "labels": label} for image, label in pairs]


def test() -> list[dict[str, Tensor]]:
    images, labels = digits.test_images()
    return [{"pixel_values": images, "labels": labels}]


if __name__ == "__main__":
    arguments = TrainingArguments(
        "trainer-run", num_train_epochs=EPOCHS, learning_rate=RATE, warmup_steps=50,
        lr_scheduler_type="constant_with_warmup", per_device_train_batch_size=16,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", use_cpu=True,
        report_to=[],
    )  # fmt: skip
    Trainer(
        build(),
        arguments,
        train_dataset=examples(*digits.training_images()),
        eval_dataset=examples(*digits.validation_images()),
    ).train()
