"""LightningModules that know nothing of qat, each another kind of training."""

import lightning as L
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

IMAGES, BATCH = 48, 16


def convs(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, outputs, 1),
    )  # fmt: skip


def classifier_net(classes=4):
    return nn.Sequential(convs(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, classes))  # fmt: skip


def loader(*, labels=None, shuffle=False):
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 8, 8, generator=draw)
    labels = torch.randint(4, (IMAGES,), generator=draw) if labels is None else labels(images)
    return DataLoader(TensorDataset(images, labels), BATCH, shuffle=shuffle)


class Classifier(L.LightningModule):
    """One network, one optimizer, a scheduler by step."""

    data = staticmethod(loader)
    network = "net"

    def __init__(self):
        super().__init__()
        self.net = classifier_net()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class OneCycle(Classifier):
    """A scheduler that moves momentum as well, Adam's decoupled decay."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=60)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Plateau(Classifier):
    """A learning rate that waits for the validation loss."""

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler,
                                                         "monitor": "val_loss"}}  # fmt: skip


class Manual(Classifier):
    """Manual optimization, two micro-batches to a step, clipped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0)
        optimizer.step()
        optimizer.zero_grad()


class Gan(L.LightningModule):
    """Two optimizers, stepped by hand; the discriminator is the network to be quantized."""

    data = staticmethod(loader)
    network = "discriminator"

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 192))
        self.discriminator = classifier_net(1)

    def training_step(self, batch, batch_idx):
        real, (first, second) = batch[0], self.optimizers()
        noise = torch.linspace(-1, 1, 5 * len(real)).view(-1, 5) * (1 + batch_idx)
        self.toggle_optimizer(first)
        fake = self.generator(noise).view(-1, 3, 8, 8)
        self.manual_backward(F.softplus(-self.discriminator(fake)).mean())
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        loss = F.softplus(-self.discriminator(real)) + F.softplus(self.discriminator(fake.detach()))
        self.manual_backward(loss.mean())
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01, betas=(0.5, 0.9)),
        ]


class Segmenter(L.LightningModule):
    """A map of classes; the batch is a dict."""

    network = "model"

    def __init__(self):
        super().__init__()
        self.model = convs(3, 2)

    @staticmethod
    def data(shuffle=False):
        images = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        rows = [{"mask": (image.mean(0) > 0).long(), "image": image} for image in images]
        return DataLoader(rows, BATCH, shuffle=shuffle)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch["image"]), batch["mask"])

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=0.01)


class Regressor(L.LightningModule):
    """A number for each vector; the network is made in configure_model."""

    network = "net"

    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = nn.Sequential(
                nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
            )

    @staticmethod
    def data(shuffle=False):
        x = torch.randn(IMAGES, 6, generator=torch.Generator().manual_seed(2))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), BATCH, shuffle=shuffle)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.NAdam(self.net.parameters(), lr=0.01)


class Backbone(L.LightningModule):
    """A backbone of timm with a head of its own, in parameter groups of two rates."""

    data = staticmethod(loader)
    network = ""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("test_resnet", num_classes=0)
        self.head = nn.Linear(self.backbone.num_features, 4)

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        groups = [
            {"params": self.backbone.parameters(), "lr": 0.01},
            {"params": self.head.parameters()},
        ]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)


MODULES = {
    cls.__name__: cls
    for cls in (Classifier, OneCycle, Plateau, Manual, Gan, Segmenter, Regressor, Backbone)
}
