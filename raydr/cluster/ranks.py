"""Ray Train's workers as one: sums and gathers over ranks, and checkpoints of generators."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train


class TorchRanks:
    """Agreement of Ray Train's workers through torch.distributed; see diffusion.state.Ranks."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def sum(self, tensors: Sequence[Any]) -> None:
        import torch
        from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

        if self.world_size == 1:
            return
        # One call for all adapters: ~130 small tensors would each pay the latency.
        flat = _flatten_dense_tensors([tensor.float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, _unflatten_dense_tensors(flat, tensors), strict=True):
            tensor.copy_(summed)

    def gather(self, value: Any) -> list[Any]:
        import torch

        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values


def latest_checkpoint() -> dict[str, bytes]:
    """{generator id: state} of Ray Train's latest checkpoint; empty on a first start."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return {}
    with checkpoint.as_directory() as folder:
        return {path.stem: path.read_bytes() for path in Path(folder).glob("*.pt")}


def report_checkpoint(ranks: TorchRanks, generator_id: str, state: bytes, metrics: dict[str, Any]) -> None:
    if ranks.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{generator_id}.pt").write_bytes(state)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
