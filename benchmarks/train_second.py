"""Trains the second network that methods are compared on: bottlenecks with many 1x1 convolutions, 64x64, 200 classes.

    python benchmarks/train_second.py [DATA] [--out second.safetensors] [--epochs 12]

DATA is the folder of pictures and of the teacher (default: the variable PYQUANT_DATA). Training starts from nothing, on
tiny64_train20k.zip alone: random crops and mirroring, and soft targets of resnet18_tiny64 beside the labels, which is
what makes it respectable in little time (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). Pictures
are made smaller for the first epochs, where detail teaches little. Every random choice is seeded. An epoch that is done
is kept beside the result, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import io
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from pyquant import console
from pyquant.evaluate import evaluate_network
from pyquant.models import build_network
from pyquant.pictures import find_pictures, match_folders, read_classes
from pyquant.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pyquant.storage import write_whole

CLASSES, SIDE = 200, 64
STAGES = [1, 2, 2, 1]  # bottlenecks; 9.8 million weights, 0.16 GMAC at 64x64
BATCH = 64
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 2e-4
WARM_UP = 0.1  # share of the steps in which the learning rate grows
SMALL_SIDE, SMALL_SHARE = 48, 0.6  # pixels, and the share of the epochs that sees such pictures
SHIFT = 6  # pixels by which a crop may lie off the centre
TEMPERATURE, SOFT_SHARE = 2.0, 0.8  # of the teacher's targets in the loss
SEED = 0


def bottlenecks(num_classes: int = CLASSES) -> nn.Module:
    """Return the untrained network: a ResNet of bottlenecks, a third as deep as ResNet-50 and as wide."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, STAGES, num_classes=num_classes)


@click.command()
@click.argument("data", envvar="PYQUANT_DATA", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", default="second.safetensors", show_default=True, type=click.Path(path_type=Path))
@click.option("--epochs", default=12, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
def main(data: Path, out: Path, epochs: int, threads: int) -> None:
    """Train the network, going on where an earlier run was stopped, and print its accuracy."""
    console.enable()
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    network = bottlenecks().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    state = out.with_suffix(".state.pth")
    done = 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        done = kept["epochs"]
        console.note(f"going on after epoch {done}")
    classes = read_classes(data / "tiny64_classes.txt")
    if done < epochs:
        teacher = build_network("resnet18", weights=data / "resnet18_tiny64.safetensors", num_classes=CLASSES)
        teacher.to(memory_format=torch.channels_last)
        pictures, labels = read_all(data / "tiny64_train20k.zip", classes)
    for epoch in range(done, epochs):
        start, start_cpu = perf_counter(), process_time()
        loss = train_epoch(network, optimizer, teacher, pictures, labels, epoch=epoch, epochs=epochs)
        kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        write_whole(state, buffer.getvalue())
        seconds, cpu = perf_counter() - start, process_time() - start_cpu
        console.note(f"epoch {epoch + 1} of {epochs}: loss {loss:.4f}, {seconds:.0f} s, {cpu:.0f} s of processor time")
    network = network.eval().to(memory_format=torch.contiguous_format)
    tensors = {
        name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    write_whole(out, save(tensors))
    network.load_state_dict(tensors)  # what is measured is what was written

    @torch.inference_mode()
    def scores(x: np.ndarray[Any, Any]) -> object:
        return network(torch.from_numpy(x)).numpy()

    preprocessing = Preprocessing.default_for((3, SIDE, SIDE))
    accuracy = evaluate_network(scores, data / "tiny64_val5k.zip", preprocessing, classes=classes)
    click.echo(f"{out}: top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} % of {accuracy['n']} pictures")


def read_all(path: Path, classes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all pictures, uint8 `[N, 3, H, W]`, and their classes, int64 `[N]`."""
    refs = find_pictures(path)
    index = match_folders((ref.folder for ref in refs), classes, CLASSES)
    pixels = np.stack([ref.open() for ref in console.track(refs, "reading pictures")])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor([index[ref.folder] for ref in refs])


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module,
    pictures: torch.Tensor,
    labels: torch.Tensor,
    *,
    epoch: int,
    epochs: int,
) -> float:
    """Show each picture once, and return the mean loss; what is drawn depends on the epoch alone."""
    generator = torch.Generator().manual_seed(SEED + 1 + epoch)
    order = torch.randperm(len(pictures), generator=generator)
    steps = len(order) // BATCH
    side = SMALL_SIDE if epoch < SMALL_SHARE * epochs else SIDE
    total = 0.0
    network.train()
    for step in console.track(range(steps), f"epoch {epoch + 1}"):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule((epoch * steps + step) / (epochs * steps))
        chosen = order[step * BATCH : (step + 1) * BATCH]
        x = normalised(cropped(pictures[chosen], generator))
        small = x if side == SIDE else F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                soft = teacher(x).float()
            logits = network(small).float()
        loss = (1 - SOFT_SHARE) * F.cross_entropy(logits, labels[chosen]) + SOFT_SHARE * TEMPERATURE**2 * F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1), F.softmax(soft / TEMPERATURE, 1), reduction="batchmean"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / steps


def schedule(progress: float) -> float:
    """Return the share of the learning rate after the share `progress` of all steps: up in a line, down in a cosine."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * float(np.cos(np.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def cropped(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the pictures `[N, 3, H, W]` shifted by a few pixels (edges are reflected), half of them mirrored."""
    height, width = pictures.shape[2:]
    padded = F.pad(pictures.float(), (SHIFT, SHIFT, SHIFT, SHIFT), mode="reflect")
    offsets = torch.randint(2 * SHIFT + 1, (len(pictures), 2), generator=generator).tolist()
    mirrored = torch.rand(len(pictures), generator=generator) < 0.5
    crops = torch.stack([one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, offsets, strict=True)])
    return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Return network inputs from pixels 0..255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels / 255 - mean) / std).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
