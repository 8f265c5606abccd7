import importlib

import pytest

from divot_lightning.cli.heads import main
from divot_lightning.cli.parts import format_parts
from divot_lightning.errors import UserError


def test_every_installed_head_is_shown_with_origin_file_and_purpose(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    header, *lines = shown.splitlines()
    assert header.split() == ["name", "class", "distribution", "version", "file"]
    (gmm,) = [line for line in lines if line.startswith("gmm ")]
    assert gmm.split()[1:3] == ["divot_heads.gmm.GMMHead", "divot-lightning"]
    assert gmm.endswith("gmm.py")
    assert lines[lines.index(gmm) + 1].strip().startswith("A mixture of K diagonal Gaussians per token")
    assert "broken" not in shown


def test_broken_plugin_is_shown_as_broken_with_its_reason(tmp_path, monkeypatch, capsys):
    info = tmp_path / "broken_dist-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-dist\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[divot_lightning.heads]\nbad = module_of_bad:BadHead\n")
    (tmp_path / "module_of_bad.py").write_text("raise RuntimeError('needs a licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "broken: bad  module_of_bad.BadHead  broken-dist 0.3" in shown
    assert "RuntimeError: needs a licence" in shown
    assert "divot_heads.mse.MSEHead" in shown


def test_no_head_at_all_tells_how_to_install():
    assert "pip install -e ." in format_parts([])


def test_unknown_option_is_refused():
    with pytest.raises(UserError, match="unrecognized arguments: --verbose"):
        main(["--verbose"])
