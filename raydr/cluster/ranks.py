"""Ray Train's workers as one: sums and gathers over ranks."""

from collections.abc import Sequence
from typing import Any

import ray.train


class TorchRanks:
    """Agreement of Ray Train's workers through torch.distributed; see diffusion.state.Ranks."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.local_rank = context.get_local_rank()

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
