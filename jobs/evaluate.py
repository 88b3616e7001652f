"""As a Ray job: ray job submit --working-dir . -- python jobs/evaluate.py URL --on DATASET..."""

import sys

from raydr import cli

sys.exit(cli.main(["evaluate", "--shape", "cluster", *sys.argv[1:]]))
