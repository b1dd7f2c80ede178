"""See `python scripts/evaluate.py --help`."""

from qat.commands.evaluate import command

if __name__ == "__main__":
    command()
