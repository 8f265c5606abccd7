"""`divot test`: measure a run on its test data."""

from divot_lightning.cli.validate import measure_run


def main(argv: list[str]) -> int:
    """Run `divot test`.

    Args:
        argv: The words after `divot test`.

    Returns:
        The exit status.
    """
    return measure_run("test", "test", argv)
