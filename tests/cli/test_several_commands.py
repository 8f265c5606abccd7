"""Several commands run in one process, until one fails."""

from divot_lightning.cli.main import main


def test_commands_run_in_order_until_one_fails(tmp_path, capsys):
    words = f"data toy '{tmp_path}/a b' --train 2 --validation 1 --held-out 1"
    assert main(["several", words, "nonsense", f"data toy {tmp_path}/never"]) == 2
    assert (tmp_path / "a b" / "train").is_dir()
    assert not (tmp_path / "never").exists()
    assert "nonsense" in capsys.readouterr().err
    assert main(["several", "--version", "--version"]) == 0
