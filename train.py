"""Train a quantized network; see `python train.py --help`."""

from qat.commands.train import main

if __name__ == "__main__":
    main()
