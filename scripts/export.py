"""See `python scripts/export.py --help`."""

from qat.commands.export import command

if __name__ == "__main__":
    command()
