"""Train a quantized network; see `python train.py --help`."""

from qat.cli import main

if __name__ == "__main__":
    main()
