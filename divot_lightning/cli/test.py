"""`divot test`: measure a run on its test data."""

from divot_lightning.cli.validate import measure_run


def main(argv: list[str]) -> int:
    """Run the command with the words after `divot test`, and return the exit status."""
    return measure_run("test", "test", argv)
