"""Train a masked language model: `python train.py --help`."""

from tf_mlm.commands.main import leave, train_main

if __name__ == "__main__":
    leave(train_main())
