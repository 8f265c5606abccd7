"""`divot validate`: measure a run on its validation data."""

from divot_lightning.cli.measured_run import measure_run


def main(argv: list[str]) -> int:
    """Run `divot validate`.

    Args:
        argv: The words after `divot validate`.

    Returns:
        The exit status.
    """
    return measure_run("validate", "validation", argv)
