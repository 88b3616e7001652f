"""The device that a worker computes on: what it asked of Ray must be there for torch too."""

import os

from raydr.errors import UserError

# Set on the nodes of a cluster whose GPUs only the scheduler believes in, as Ray's fake ones: GPU work runs on CPUs.
LOGICAL_GPUS = "RAYDR_LOGICAL_GPUS"
# A GPU's worker feeds the GPU; so many threads do the rest.
GPU_THREADS = 4


def of_worker(gpu: bool, num_threads: int) -> str:
    """ "cuda" for work that asked Ray for a GPU, else "cpu"; sets this process's torch threads by it.

    A CPU gets `num_threads`. Raises UserError naming the node where torch sees no GPU: images made on a CPU would be
    other images, at a hundredth of the speed and the price of a GPU.
    """
    import torch

    found = gpu and torch.cuda.is_available()
    if gpu and not found and os.environ.get(LOGICAL_GPUS) != "1":
        raise UserError(
            f"Ray gave a GPU on node {os.uname().nodename}, and torch {torch.__version__} sees none there: install a "
            "torch built for its driver's CUDA (`raydr doctor` looks at every node), leave the node out with "
            "--exclude-node, or choose a shape without GPUs"
        )
    torch.set_num_threads(GPU_THREADS if found else num_threads)
    return "cuda" if found else "cpu"
