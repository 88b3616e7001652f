"""`raydr` with the stand-in for diffusion, ensemble and photographs: python standin_cli.py synthesize --out OUT ..."""

import contextlib
import dataclasses
import os
import sys

import standin

from raydr import cli, shapes, storage
from raydr.cluster import ensemble, finetune, synthesize


def main(argv):
    shapes.SHAPES["laptop"] = dataclasses.replace(shapes.SHAPES["laptop"], dashboard=False)
    synthesize.ready = lambda recipe, target: None
    synthesize.Diffusion, synthesize.Judge = standin.Standin, standin.Judge
    synthesize.commit_shard = standin.commit_shard
    finetune.planned = lambda recipe, target: list(standin.GENERATORS)
    ensemble.identity = lambda recipe, target: standin.ENSEMBLE
    if os.environ.get("STANDIN_FORCE"):  # a second driver on the same output that does not mind the first
        storage.Run.lock = lambda self, purpose: contextlib.nullcontext()
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
