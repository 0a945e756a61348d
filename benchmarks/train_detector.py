"""Trains a Mask R-CNN on drawn pictures, small enough for a CPU, good enough to look at.

    python benchmarks/train_detector.py --backbone resnet50.pqmodel [--out detector.safetensors] [--minutes 60]

The backbone is a ResNet-50 for ImageNet: a `.pqmodel`, or weights in torchvision's names. The pictures (synthetic.py)
are drawn first, into the folder beside the result whose name ends in `-pictures`: `train` and `validation`, each with
annotations as COCO has them. What makes it cheap: small pictures, few proposals and few masks for each, bfloat16, and
a backbone whose first stages stay as they are. Every random choice is seeded. The state is kept beside the result, so
the same command goes on where it was stopped; minutes become steps after the first of them.

`pyquant compress train_detector:detector --weights detector.safetensors --classes detector.classes.txt ..` finds the
network in the folder of this file, and `pyquant eval` takes the annotations.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from synthetic import ANNOTATIONS, CLASSES, PICTURES, Description, class_lines, extent, write_set
from torch import Tensor, nn
from torchvision_ready import make_ready

from pyquant import console
from pyquant.average_precision import evaluate_finder
from pyquant.errors import InputError
from pyquant.export.state import state_dict
from pyquant.file import read_model
from pyquant.masks import from_coco
from pyquant.models import read_weights
from pyquant.pictures import read_picture
from pyquant.storage import write_whole

SHORT, LONG = 192, 256  # pixels of the detector's inputs
FROZEN_STAGES = 3  # of five, from the stem on
HEAD_RATE, BODY_RATE, WEIGHT_DECAY = 3e-4, 6e-5, 1e-2  # of AdamW
WARM_UP = 0.05  # share of the steps in which learning rates grow
BATCH = 2  # pictures
PACE_STEPS = 20  # after which minutes become steps
SECONDS_BETWEEN_STATES = 120
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is drawn."""

    train: int
    validation: int


FULL, SMOKE = Size(train=3000, validation=200), Size(train=8, validation=4)


def detector(**settings: Any) -> nn.Module:
    """Return the untrained network: torchvision's maskrcnn_resnet50_fpn for our classes and small pictures."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5 - FROZEN_STAGES
    )
    few = {
        "rpn_pre_nms_top_n_train": 400,
        "rpn_post_nms_top_n_train": 150,
        "rpn_batch_size_per_image": 128,
        "box_batch_size_per_image": 32,
        "box_positive_fraction": 0.2,
        "box_detections_per_img": 50,
    }
    return MaskRCNN(backbone, len(CLASSES) + 1, min_size=SHORT, max_size=LONG, **{**few, **settings})


@click.command()
@click.option("--backbone", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default="detector.safetensors", show_default=True, type=click.Path(path_type=Path))
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default=None, help="[default: cuda where there is one]")
@click.option("--smoke", is_flag=True, help="A few pictures and steps, to see that it runs.")
def main(backbone: Path, out: Path, minutes: float, threads: int, device: str | None, smoke: bool) -> None:
    """Draw the pictures and train the detector, going on where an earlier run was stopped."""
    console.enable()
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    make_ready(for_training=True)
    size = SMOKE if smoke else FULL
    pictures = out.with_name(f"{out.stem}-pictures")
    for split in ("train", "validation"):
        write_set(pictures / split, Description(split=split, pictures=getattr(size, split), seed=SEED))
    module = detector()
    load_backbone(module, backbone)
    module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train(module, read_set(pictures / "train"), out.with_suffix(".state.pth"), minutes, max_steps=2 if smoke else None)
    write_whole(out, save({name: value.cpu().contiguous() for name, value in module.state_dict().items()}))
    write_whole(out.with_suffix(".classes.txt"), class_lines().encode())
    click.echo(f"{out}: trained; its classes are in {out.with_suffix('.classes.txt')}, its pictures in {pictures}")
    validation = pictures / "validation"
    measured = evaluate_finder(by_torch(module), validation, validation / ANNOTATIONS, with_masks=True)
    for kind in ("box", "mask"):
        figures = ", ".join(f"{name} {-1 if share is None else share:.2f}" for name, share in measured[kind].items())
        click.echo(f"{kind}: {figures} (%, of {measured['n']} pictures, by PyTorch)")


def by_torch(module: Any) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]:
    """Return a function of one picture that PyTorch computes, with results like those of `Model.detect`."""
    device = next(module.parameters()).device

    @torch.inference_mode()
    def find(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        for pool in (module.roi_heads.box_roi_pool, module.roi_heads.mask_roi_pool):
            pool.scales = pool.map_levels = None  # it would keep those of the first picture
        (found,) = module([torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(device) / 255])
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        return {**arrays, "masks": arrays["masks"][:, 0] > 0.5}

    return find


def load_backbone(module: Any, path: Path) -> None:
    """Give the body of a detector the weights of a classification network.

    Raises:
        InputError: they are not those of a ResNet-50.
    """
    if path.suffix == ".pqmodel":
        given = {
            name: torch.from_numpy(np.array(value)) for name, value in state_dict(read_model(path).network).items()
        }
    else:
        given = read_weights(path)
    body = module.backbone.body
    wanted = body.state_dict()
    if missing := [name for name in wanted if name not in given or given[name].shape != wanted[name].shape]:
        raise InputError(f"{path}: not a ResNet-50: {len(missing)} tensors are missing or differ, such as {missing[0]}")
    body.load_state_dict({name: given[name] for name in wanted})


def read_set(folder: Path) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return all pictures, uint8 `[3, H, W]`, with boxes, labels and masks."""
    content = json.loads((folder / ANNOTATIONS).read_text())
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    result = []
    for image in console.track(content["images"], "reading pictures"):
        pixels = read_picture(folder / PICTURES / image["file_name"])
        masks = [from_coco(annotation["segmentation"]) for annotation in found[image["id"]]]
        target = {
            "boxes": torch.tensor([extent(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([a["category_id"] for a in found[image["id"]]], dtype=torch.int64),
            "masks": torch.from_numpy(np.array(masks, np.uint8).reshape(-1, *pixels.shape[:2])),
        }
        result.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1), target))
    return result


def train(
    module: Any, pictures: list[tuple[Tensor, dict[str, Tensor]]], state: Path, minutes: float, max_steps: int | None
) -> None:
    """Train for about so many minutes, or steps; `state` is a file in which what was done is kept."""
    body = [p for p in module.backbone.body.parameters() if p.requires_grad]
    known = {id(p) for p in body}
    heads = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    optimizer = torch.optim.AdamW(
        [{"params": heads, "lr": HEAD_RATE}, {"params": body, "lr": BODY_RATE}], weight_decay=WEIGHT_DECAY
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    done, steps = 0, max_steps
    if state.exists():
        kept = torch.load(state, weights_only=True)
        module.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        done, steps = kept["done"], kept["steps"]
        console.note(f"going on after step {done}")
    module.train().to(memory_format=torch.channels_last)
    start = saved = perf_counter()
    total = 0.0
    while steps is None or done < steps:
        share = 0.0 if steps is None else done / steps  # the pace is taken in the warm-up, whose end is not known yet
        rate = done / 1000 if steps is None else schedule(share)
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate
        loss = sum(losses(module, pictures, done).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(heads + body, 10.0)
        optimizer.step()
        total += float(loss.detach())
        done += 1
        now = perf_counter()
        if steps is None and done == PACE_STEPS:
            steps = max(int(minutes * 60 / ((now - start) / PACE_STEPS)), PACE_STEPS + 1)
        if done % 25 == 0:
            console.note(f"step {done} of {steps}: loss {total / 25:.3f}, {now - start:.0f} s")
            total = 0.0
        if steps is not None and (done == steps or now - saved > SECONDS_BETWEEN_STATES):
            buffer = io.BytesIO()
            kept = {"network": module.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "steps": steps}
            torch.save(kept, buffer)
            write_whole(state, buffer.getvalue())
            saved = now
    module.eval().to(memory_format=torch.contiguous_format)


def schedule(progress: float) -> float:
    """Return the share of the learning rate after the share `progress` of all steps: up in a line, down in a cosine."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * float(np.cos(np.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def losses(module: Any, pictures: list[tuple[Tensor, dict[str, Tensor]]], step: int) -> dict[str, Tensor]:
    """Return the losses on a few pictures, drawn and turned by the number of the step alone."""
    generator = np.random.default_rng([SEED, step])
    torch.manual_seed(SEED + step)  # proposals are drawn by torchvision
    device = next(module.parameters()).device
    inputs, targets = [], []
    for index in generator.integers(len(pictures), size=BATCH):
        pixels, target = pictures[index]
        masks = target["masks"]
        turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
        pixels, masks = (torch.rot90(x, turns, (1, 2)) for x in (pixels, masks))
        if mirrored:
            pixels, masks = pixels.flip(2), masks.flip(2)
        boxes = torch.tensor([extent(mask) for mask in masks.bool().numpy()], dtype=torch.float32).reshape(-1, 4)
        inputs.append(pixels.to(device).float() / 255)
        targets.append(
            {"boxes": boxes.to(device), "labels": target["labels"].to(device), "masks": masks.contiguous().to(device)}
        )
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found: dict[str, Tensor] = module(inputs, targets)
    return found


if __name__ == "__main__":
    main()
