"""Training of one grader: a fixed number of optimisation steps over a fixed schedule of draws.

Every arm of a sweep runs through `train` with the same seed, steps and draw shares, so that two arms
start from the same weights, see the same grades in the same order under the same augmentation, and
differ in the images alone.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydr import config, metrics
from raydr.errors import UserError
from raydr.grades import NUM_GRADES
from raydr.grading import losses, pixels, sampling
from raydr.grading.backbones import GradingModel, build
from raydr.grading.lanet import LANet
from raydr.identity import seed_of

WARM_UP = 0.05  # share of the steps over which AdamW's rate rises: BatchNorm statistics settle first


class Images(Protocol):
    """Anything that gives uint8 (n, H, W, 3) for an int64 array of n positions, as NumPy arrays do."""

    def __getitem__(self, positions: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the model in eval mode on its device, and how it got there."""

    model: GradingModel
    history: list[dict[str, Any]]  # the events, in order
    seconds: float  # the training loop, without building the model
    step: int  # whose weights these are: the last one, or the best on validation
    validation: dict[str, float] | None  # balanced_accuracy and loss (nats) at that step
    precision: str  # fp32 or bf16


def native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware; elsewhere autocast is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(features.get("avx512_bf16") or features.get("amx_bf16"))


@contextmanager
def reproducible(device: torch.device, num_threads: int | None) -> Iterator[None]:
    """Deterministic kernels and a fixed number of threads inside; the process's own settings after."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn
    benchmark, tf32 = cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    # cuBLAS reads this once, at its first call in the process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        if device.type == "cuda":
            # warn_only: adaptive pooling of VGG at 512 px has no deterministic gradient on CUDA.
            torch.use_deterministic_algorithms(True, warn_only=True)
            cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = False, False
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = benchmark, tf32
        torch.set_num_threads(threads)


def one_hot(grades: np.ndarray) -> np.ndarray:
    return np.eye(NUM_GRADES, dtype=np.float32)[np.asarray(grades, dtype=np.int64)]


def mixed_targets(
    grader: config.Grader, grades: np.ndarray, soft_targets: np.ndarray | None, synthetic: np.ndarray | None
) -> np.ndarray:
    """Targets float32 (n, 5): one-hot, and (1 - rho) one-hot + rho soft where `synthetic` (paper.md 9)."""
    targets = one_hot(grades)
    if grader.soft_labels == 0:
        return targets
    if soft_targets is None or synthetic is None:
        raise UserError("grader.soft_labels mixes ensemble probabilities into synthetic images: score them first")
    assert soft_targets.shape == targets.shape, soft_targets.shape
    rho = grader.soft_labels * synthetic.astype(np.float32)[:, None]
    return ((1 - rho) * targets + np.where(rho > 0, rho * soft_targets, 0)).astype(np.float32)


def learning_rate(grader: config.Grader, step: int) -> float:
    """Rate of optimisation step `step`, counted from 0.

    adamw: linear warm-up, then a cosine to zero. sgd: lr0 (1 - t)^0.9 with t the share of the steps
    done, the paper's per-epoch rule at its limit of short epochs.
    """
    if grader.optimizer == "sgd":
        return grader.learning_rate * (1 - step / grader.steps) ** 0.9
    warm_up = max(1, round(WARM_UP * grader.steps))
    if step < warm_up:
        return grader.learning_rate * (step + 1) / warm_up
    return grader.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, grader.steps - warm_up)))


def make_optimizer(grader: config.Grader, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW without decay on biases, norms and scalars; or the paper's SGD, which decays everything."""
    if grader.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=grader.learning_rate, momentum=0.9, weight_decay=grader.weight_decay
        )
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": grader.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=grader.learning_rate, fused=True)


def batches(images: Images, rows: np.ndarray, schedule: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """uint8 (B, H, W, 3) for each row (B,) of `schedule`, the next one gathered while this one is used."""

    def gather(draws: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(images[rows[draws]]))
        return batch.pin_memory() if device.type == "cuda" else batch

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(gather, schedule[0])
        for following in schedule[1:]:
            batch = ahead.result()
            ahead = pool.submit(gather, following)
            yield batch
        yield ahead.result()


def train(
    grader: config.Grader,
    images: Images,
    rows: np.ndarray,
    grades: np.ndarray,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    soft_targets: np.ndarray | None = None,
    synthetic: np.ndarray | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    num_threads: int | None = None,
) -> Trained:
    """Train a grader on `images[rows]` (n,) with `grades` (n,) for `grader.steps` steps.

    `validation` = (rows, grades) into the same images; with `grader.evaluate_every` the best weights by
    validation balanced accuracy are kept (the earliest of equals), else the last. `synthetic` bool (n,)
    and `soft_targets` float32 (n, 5) serve `grader.soft_labels` and the paper's sampler. `on_event` gets
    {"event": "train", "step", "steps", "loss", "learning_rate", "images_per_second", "waited_seconds"} some twenty
    times, the last of which is what training has waited for images so far, and {"event": "validation", "step",
    "balanced_accuracy", "loss"}. Equal arguments on equal devices and
    thread counts give equal bits. Raises UserError for combinations that `losses` refuses.
    """
    device = torch.device(device)
    rows, grades = np.asarray(rows, dtype=np.int64), np.asarray(grades, dtype=np.int64)
    assert rows.shape == grades.shape == (len(rows),), (rows.shape, grades.shape)
    counts = sampling.counts_of(grades)
    real_counts = None if synthetic is None else sampling.counts_of(grades[~synthetic])
    loss_of = losses.make_loss(grader, counts, device)
    schedule = sampling.draws(grades, grader.sampler, grader.steps * grader.batch, seed, real_counts)
    targets = torch.from_numpy(mixed_targets(grader, grades, soft_targets, synthetic)).to(device)
    bf16 = grader.precision == "bf16" or (grader.precision == "auto" and native_bf16(device))
    history: list[dict[str, Any]] = []

    def report(**event: Any) -> None:
        history.append(event)
        if on_event is not None:
            on_event(event)

    with reproducible(device, num_threads), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model = build(grader, seed=seed).to(device)
        if grader.loss == "logit_adjustment_post":
            model.shift.copy_(torch.from_numpy(losses.parameter(grader) * losses.log_prior(counts)))
        torch.manual_seed(seed_of("grader-training", seed))  # dropout
        noise = torch.Generator().manual_seed(seed_of("grader-augmentation", seed))
        mixing = np.random.default_rng(seed_of("grader-mixup", seed))
        optimizer = make_optimizer(grader, model)
        best: tuple[float, int, dict[str, float], dict[str, Tensor]] | None = None
        every, started, reported = max(1, grader.steps // 20), time.perf_counter(), (time.perf_counter(), 0)
        plan, waited = schedule.reshape(grader.steps, grader.batch), 0.0
        source = batches(images, rows, plan, device)

        for step in range(grader.steps):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            x = pixels.augment(pixels.to_input(batch, grader.px, device), grader.augmentation, noise)
            y = targets[torch.from_numpy(plan[step]).to(device)]
            if grader.mixup > 0:
                # Zhang et al. 2018, eq. 1-2: one share a batch, partners by a permutation of it.
                share, partner = mixing.beta(grader.mixup, grader.mixup), torch.from_numpy(mixing.permutation(len(x)))
                partner = partner.to(device)
                x, y = x.lerp(x[partner], 1 - share), y.lerp(y[partner], 1 - share)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(grader, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                binary, logits = model.both(x)
            loss = loss_of(logits.float(), y, step / grader.steps)
            if binary is not None and isinstance(model.net, LANet):
                binary_loss = losses.cross_entropy(binary.float(), losses.binary_targets(y))
                loss = losses.joint(binary_loss, loss, model.net.sigma1, model.net.sigma2)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            done = step + 1
            if done % every == 0 or done == grader.steps:
                now = time.perf_counter()
                rate = (done - reported[1]) * grader.batch / (now - reported[0])
                reported = (now, done)
                report(
                    event="train",
                    step=done,
                    steps=grader.steps,
                    loss=float(loss.detach()),
                    learning_rate=learning_rate(grader, step),
                    images_per_second=rate,
                    waited_seconds=waited,
                )
            due = done == grader.steps or (grader.evaluate_every > 0 and done % grader.evaluate_every == 0)
            if validation is not None and due:
                values = evaluate(model, images, *validation)
                report(event="validation", step=done, **values)
                if best is None or values["balanced_accuracy"] > best[0]:
                    best = (values["balanced_accuracy"], done, values, copy.deepcopy(model.state_dict()))

        kept, scores = grader.steps, None
        if best is not None:
            _, kept, scores, state = best
            model.load_state_dict(state)
        seconds = time.perf_counter() - started
    return Trained(model.eval(), history, seconds, kept, scores, "bf16" if bf16 else "fp32")


@torch.inference_mode()
def predict(model: GradingModel, images: Images, rows: np.ndarray, batch: int | None = None) -> np.ndarray:
    """Softmax of the model's logits for `images[rows]`: float32 (n, 5), in fp32 whatever it was trained in.

    `batch` images at a time (None: `pixels.pass_size`).
    """
    training, device = model.training, model.shift.device
    batch = batch or pixels.pass_size(model.px)
    model.eval()
    outputs = []
    for start in range(0, len(rows), batch):
        chunk = torch.from_numpy(np.ascontiguousarray(images[np.asarray(rows[start : start + batch])]))
        outputs.append(F.softmax(model(pixels.to_input(chunk, model.px, device)), dim=1).cpu())
    model.train(training)
    return torch.cat(outputs).numpy() if outputs else np.zeros((0, NUM_GRADES), np.float32)


def evaluate(model: GradingModel, images: Images, rows: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """Balanced accuracy and cross entropy (nats, each grade weighing the same) on `images[rows]`."""
    probabilities, grades = predict(model, images, rows), np.asarray(grades, dtype=np.int64)
    matrix = metrics.confusion(grades, probabilities.argmax(axis=1))
    nll = -np.log(np.maximum(probabilities[np.arange(len(grades)), grades], 1e-12))
    loss = float(np.mean([nll[grades == grade].mean() for grade in np.unique(grades)]))
    return {"balanced_accuracy": metrics.balanced_accuracy(matrix), "loss": loss}
