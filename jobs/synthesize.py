"""As a Ray job: ray job submit --working-dir . -- python jobs/synthesize.py --recipe NAME --out URL"""

import sys

from raydr import cli

sys.exit(cli.main(["synthesize", "--shape", "cluster", *sys.argv[1:]]))
