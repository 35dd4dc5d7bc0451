"""A Lightning run on scikit-learn's digits, as people have them: a constant learning rate and a
checkpoint of every epoch, in lightning_logs. README's recipe averages it."""

from __future__ import annotations

import digits
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]
EPOCHS, RATE = 40, 0.05


class Network(lightning.LightningModule):
    """The quickstart's network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.network()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: digits.Batch) -> Tensor:
        images, labels = batch
        return cross_entropy(self(digits.augmented(images, self.generator)), labels)

    def validation_step(self, batch: digits.Batch) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE, momentum=0.9, weight_decay=5e-4)


def loader(images: Tensor, labels: Tensor, size: int, *, shuffle: bool) -> Loader:
    return DataLoader(TensorDataset(images, labels), size, shuffle=shuffle)


if __name__ == "__main__":
    lightning.seed_everything(0)
    every = ModelCheckpoint(filename="{epoch}-{step}-{val_loss:.3f}", save_top_k=-1)
    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[every])
    training = loader(*digits.training_images(), 16, shuffle=True)
    validation = loader(*digits.validation_images(), 300, shuffle=False)
    trainer.fit(Network(), training, validation)
