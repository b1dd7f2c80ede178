"""See `python scripts/report.py --help`."""

from qat.commands.report import command

if __name__ == "__main__":
    command()
