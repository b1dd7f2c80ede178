"""See `python scripts/predict.py --help`."""

from qat.commands.predict import command

if __name__ == "__main__":
    command()
