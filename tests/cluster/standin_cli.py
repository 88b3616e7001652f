"""`raydr` with the stand-in for diffusion, ensemble and photographs: python standin_cli.py synthesize --out OUT ..."""

import dataclasses
import sys

import standin

from raydr import cli, shapes
from raydr.cluster import ensemble, finetune, synthesize


def main(argv):
    shapes.SHAPES["laptop"] = dataclasses.replace(shapes.SHAPES["laptop"], dashboard=False)
    synthesize.ready = lambda recipe, target: None
    synthesize.Diffusion = standin.Standin
    finetune.planned = lambda recipe, target: list(standin.GENERATORS)
    ensemble.identity = lambda recipe, target: standin.ENSEMBLE
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
