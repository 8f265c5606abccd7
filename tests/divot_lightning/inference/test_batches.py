"""Files of prompts: each prompt by itself, and only what is missing when the command is repeated."""

import json

import numpy as np
import pytest

from divot_datamodules.decoding.video_writing import write_video
from divot_lightning import DivotPipeline
from divot_lightning.cli import ask, generate
from divot_lightning.errors import UserError


@pytest.fixture
def counted(monkeypatch):
    """The texts that a pipeline was asked to work on."""
    calls = []
    for name in ("ask", "generate"):
        real = getattr(DivotPipeline, name)

        def call(pipeline, *args, real=real, **options):
            calls.append(args[-1])
            return real(pipeline, *args, **options)

        monkeypatch.setattr(DivotPipeline, name, call)
    return calls


def test_clips_that_are_missing_or_have_other_settings_are_made(llm_run, tmp_path, capsys, counted):
    file, output = tmp_path / "p.txt", tmp_path / "out" / "x.mp4"
    file.write_text('a red circle\n{"prompt": "a blue square", "seed": 4}\n')
    words = [str(llm_run), "--prompts", str(file), "--output", str(output), "--num", "2"]
    assert generate.main(words) == 0
    names = [f"x-{line}-{clip}.mp4" for line in (0, 1) for clip in (0, 1)]
    assert capsys.readouterr().out.split() == [str(output.with_name(name)) for name in names]
    made = {name: output.with_name(name).read_bytes() for name in names}
    stored = json.loads(output.with_name("x-1-1.json").read_text())
    assert (stored["prompt"], stored["seed"]) == ("a blue square", 4)
    counted.clear()
    output.with_name("x-1-0.mp4").unlink()
    assert generate.main([*words, "--jsonl"]) == 0
    assert counted == ["a blue square"]
    prompts = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert prompts == ["a red circle"] * 2 + ["a blue square"] * 2
    assert {name: output.with_name(name).read_bytes() for name in names} == made
    counted.clear()
    assert generate.main([*words, "--seed", "1"]) == 0
    assert counted == ["a red circle"]  # the other prompt has a seed of its own


def test_clips_are_named_by_their_texts_as_vbench_reads_them(llm_run, tmp_path, capsys, counted):
    file, output = tmp_path / "p.txt", tmp_path / "out" / "{prompt}.mp4"
    file.write_text("a red circle\n" + json.dumps({"prompt": "a cat/dog. {no} field"}))
    words = [str(llm_run), "--prompts", str(file), "--output", str(output), "--steps", "2", "--sampler", "dpm_solver"]
    assert generate.main(words) == 0
    names = ["a red circle-0.mp4", "a cat_dog. {no} field-0.mp4"]
    assert sorted(path.name for path in output.parent.glob("*.mp4")) == sorted(names)
    stored = json.loads((output.parent / "a red circle-0.json").read_text())
    assert (stored["sampling"]["steps"], stored["objective"]["init_args"]["solver"]) == (2, "dpm_solver")
    counted.clear()
    assert generate.main(words) == 0
    assert counted == []
    assert generate.main([*words, "--sampler", "unipc"]) == 0
    assert len(counted) == 2
    capsys.readouterr()
    assert generate.main([*words[:1], "--prompt", "a blue square", "--num", "2", *words[3:]]) == 0
    made = [str(output.parent / f"a blue square-{clip}.mp4") for clip in (0, 1)]
    assert capsys.readouterr().out.splitlines() == made


@pytest.mark.parametrize(
    ("prompts", "message"), [("a dog\na cat\na dog", "a text occurs twice"), ("dog " * 80, "too long for the name")]
)
def test_texts_that_are_no_names_of_files_are_refused(llm_run, tmp_path, prompts, message):
    (tmp_path / "p.txt").write_text(prompts)
    with pytest.raises(UserError, match=message):
        generate.main([str(llm_run), "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "{prompt}.mp4")])


def test_answers_are_added_where_they_are_missing(llm_run, tmp_path, capsys, counted):
    video = str(write_video(tmp_path / "v.mp4", np.zeros((16, 3, 32, 32), np.uint8), 8))
    file, output = tmp_path / "p.jsonl", tmp_path / "new" / "answers.jsonl"
    rows = [{"video": video, "question": "what shape is it ?"}, {"video": video, "question": "what colour is it ?"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(llm_run), "--prompts", str(file), "--output", str(output)]
    assert ask.main(words) == 0
    assert capsys.readouterr().out == f"{output}: 2 answers, 0 were there\n"
    whole = output.read_bytes()
    answers = [json.loads(line) for line in whole.splitlines()]
    expected = DivotPipeline.from_pretrained(llm_run).ask(video, [row["question"] for row in rows])
    assert [row["answer"] for row in answers] == [answer.text for answer in expected]
    output.write_bytes(whole[:-5])  # as if the process had been killed in the middle of a line
    counted.clear()
    assert ask.main(words) == 0
    assert counted == [["what colour is it ?"]]
    assert output.read_bytes() == whole
