"""Train a masked language model: `python train.py --help`."""

import sys

from tf_mlm.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
