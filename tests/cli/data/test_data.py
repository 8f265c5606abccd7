import functools
import json

import pytest
import torch
from safetensors.torch import save

from divot_backbones.vision.clip import ClipVision
from divot_datamodules.decoding.video_writing import write_video
from divot_lightning.checkpoint.components import save_component
from divot_lightning.cli.data import COMMANDS, main
from divot_lightning.cli.main import main as divot
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.helpers.broken_shards import write_members


def tiny_tokenizer():
    vision = functools.partial(ClipVision, frozen=False, image_size=8, patch_size=4, width=8, layers=1, heads=2)
    sizes = {"temporal_width": 6, "temporal_layers": 1, "temporal_heads": 1, "temporal_init": "random", "pool_size": 2}
    sizes |= {"spatiotemporal_width": 8, "spatiotemporal_layers": 1, "spatiotemporal_heads": 1}
    sizes |= {"num_tokens": 3, "resampler_layers": 1, "resampler_heads": 1, "resampler_head_dim": 4}
    return VideoTokenizer(TokenizerConfig(vision=vision, token_dim=4, **sizes))


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_unknown_commands_are_named():
    with pytest.raises(UserError, match=r"'data toys'.*Did you mean 'divot data toy'"):
        main(["toys"])


def test_toy_makes_data_once_and_refuses_another_size(tmp_path, capsys):
    words = ["data", "toy", str(tmp_path), "--train", "4", "--validation", "2", "--held-out", "2"]
    assert divot(words) == 0
    assert "4 training, 2 validation, 2 held-out clips of 32 x 32 pixels; made" in capsys.readouterr().out
    assert divot(words) == 0
    assert "already there" in capsys.readouterr().out
    assert divot([*words, "--size", "64"]) == 2
    assert "size is 32, not 64" in capsys.readouterr().err


def test_pack_inspect_and_contact_sheet(tmp_path, capsys):
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (40, 3, 48, 64), dtype=np.uint8)
    write_video(tmp_path / "in" / "clip.mp4", noise, 8)
    write_video(tmp_path / "in" / "short.mp4", noise[:4], 8)
    (tmp_path / "in" / "list.jsonl").write_text(
        "\n".join(json.dumps({"video": name, "caption": "noise"}) for name in ("clip.mp4", "short.mp4"))
    )
    words = ["data", "pack", str(tmp_path / "in" / "list.jsonl"), str(tmp_path / "out"), "--clip-seconds", "2"]
    assert divot(words) == 0
    shown = capsys.readouterr().out
    assert "2 samples (2 with texts) in 1 shards; made" in shown
    assert "short: too_short (0.50 s of 2.00 s)" in shown
    assert divot(["data", "inspect", str(tmp_path / "out"), "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    shown = capsys.readouterr().out
    assert "48x64 2" in shown
    assert "skipped     none" in shown
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_inspect_fails_if_samples_cannot_be_used(tmp_path, capsys):
    make_toy_shards(tmp_path, train=4, validation=1, held_out=1)
    (tmp_path / "train" / "shard-000000.tar").write_bytes(b"rubbish" * 1000)
    assert divot(["data", "inspect", str(tmp_path), "--list", str(tmp_path / "skipped.jsonl"), "--workers", "0"]) == 1
    assert f"  {'not_a_tar':<22}{1:>7}" in capsys.readouterr().out
    assert '"reason": "not_a_tar"' in (tmp_path / "skipped.jsonl").read_text()


def test_inspect_finds_texts_that_a_task_misses(tmp_path, capsys):
    make_toy_shards(tmp_path, train=1, validation=1, held_out=1)
    words = ["data", "inspect", str(tmp_path), "--workers", "0", "--tasks"]
    assert divot([*words, "caption,question"]) == 0
    assert divot([*words, "story"]) == 1
    assert f"  {'missing_story':<22}{3:>7}" in capsys.readouterr().out
    assert divot([*words, "captoin"]) == 2
    assert "captoin" in capsys.readouterr().err


def test_inspect_finds_what_a_model_cannot_take(tmp_path, capsys):
    save_component(tiny_tokenizer(), tmp_path / "run" / "tokenizer")  # 3 tokens of width 4
    story = {"story": {"texts": ["a", "b", "c"]}, "caption": "c"}
    shapes = {"fits": (3, 4), "wide": (3, 5), "story": (3, 3, 4)}
    members = []
    for key, shape in shapes.items():
        text = story if key == "story" else {"caption": "c"}
        data = save({"tokens": torch.zeros(*shape)})
        members += [(f"{key}.features.safetensors", data), (f"{key}.json", json.dumps(text).encode())]
    write_members(tmp_path / "a.tar", members)
    words = ["data", "inspect", str(tmp_path / "a.tar"), "--workers", "0", "--list", str(tmp_path / "found.jsonl")]

    def found(*more):
        divot([*words, *more])
        lines = (tmp_path / "found.jsonl").read_text().splitlines()
        return {json.loads(line)["key"]: json.loads(line)["reason"] for line in lines}

    assert found() == {"wide": "feature_shape"}
    assert "features    3x4 2, 3x5 1 (tokens x width)" in capsys.readouterr().out
    run = ["--tokenizer", str(tmp_path / "run")]
    assert found(*run) == {"wide": "feature_shape"}
    # <bos>, twice <vid> <frame> 3 </frame> <frame> 3 </frame> </vid>, once <vid> <frame> 3 </frame> </vid>, <eos>
    assert found(*run, "--tasks", "caption,story", "--max-length", "32") == {
        "wide": "feature_shape",
        "story": "too_long",
    }
    assert found(*run, "--tasks", "caption,story", "--max-length", "33") == {"wide": "feature_shape"}
    assert found("--max-sample-clips", "2") == {"wide": "feature_shape", "story": "too_many_clips"}
    assert divot([*words, "--max-length", "9"]) == 2
    assert "--max-length needs --tasks and --tokenizer" in capsys.readouterr().err


def test_names_from_shards_reach_the_terminal_as_text(tmp_path, capsys):
    write_members(tmp_path / "a.tar", [("\x1b[2Jk.mp4", b""), ("\x1b[2Jk.mp4", b"")])
    for command in ("inspect", "index"):
        divot(["data", command, str(tmp_path / "a.tar")])
        shown = capsys.readouterr().out
        assert "\\x1b[2Jk" in shown
        assert "\x1b" not in shown


def test_index_makes_what_is_missing(tmp_path, capsys):
    make_toy_shards(tmp_path, train=4, validation=1, held_out=1)
    assert divot(["data", "index", str(tmp_path)]) == 0
    assert "6 samples in 6 shards; 0 indexes written, 6 existed; 0 samples skipped" in capsys.readouterr().out
    (tmp_path / "train" / "shard-000000.tar.index.npz").unlink()
    (tmp_path / "train" / "shard-000001.tar").write_bytes(b"rubbish" * 1000)
    assert divot(["data", "index", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "5 samples in 6 shards; 1 indexes written, 5 existed; 1 samples skipped" in shown
    assert f"not_a_tar: {tmp_path / 'train' / 'shard-000001.tar'}" in shown


def test_encode_needs_a_tokenizer(tmp_path, capsys):
    make_toy_shards(tmp_path, train=4, validation=1, held_out=1)
    words = ["--tokenizer", "nowhere", "--input", str(tmp_path / "train"), "--output", str(tmp_path / "out")]
    assert divot(["data", "encode", *words]) == 2
    assert "nowhere" in capsys.readouterr().err
