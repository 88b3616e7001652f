"""As a Ray job: ray job submit --working-dir . -- python jobs/finetune.py --recipe NAME --out URL"""

import sys

from raydr import cli

sys.exit(cli.main(["finetune", "--shape", "cluster", *sys.argv[1:]]))
