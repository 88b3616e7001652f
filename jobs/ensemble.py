"""As a Ray job: ray job submit --working-dir . -- python jobs/ensemble.py --recipe NAME --out URL"""

import sys

from raydr import cli

sys.exit(cli.main(["ensemble", "--shape", "cluster", *sys.argv[1:]]))
