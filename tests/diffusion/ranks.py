"""The ranks of a fit without Ray."""

import threading

import torch


class Threads:
    """The workers of one run as threads: sums and gathers in rank order."""

    def __init__(self, world_size):
        self.barrier, self.slots = threading.Barrier(world_size, timeout=240), [None] * world_size

    def rank(self, rank):
        return ThreadRank(self, rank)


class ThreadRank:
    def __init__(self, group, rank):
        self.group, self.rank, self.world_size = group, rank, len(group.slots)

    def gather(self, value):
        self.group.slots[self.rank] = value
        self.group.barrier.wait()
        values = list(self.group.slots)
        self.group.barrier.wait()
        return values

    def sum(self, tensors):
        gathered = self.gather([tensor.clone() for tensor in tensors])
        for k, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([part[k] for part in gathered]).sum(0))
