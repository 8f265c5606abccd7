"""The built-in benchmarks keep the contract of a benchmark."""

import json

import pytest

from divot_datamodules.toy.shards import write_toy_data
from divot_datamodules.toy.story_shards import ToyStoryConfig
from divot_lightning.evaluation.answers.accuracy import LETTERS
from divot_lightning.evaluation.benchmarks.captions import MSRVTT, MSRVTTGeneration
from divot_lightning.evaluation.benchmarks.clips import Reconstruction
from divot_lightning.evaluation.benchmarks.multiple_choice import EgoSchema, MVBench
from divot_lightning.evaluation.benchmarks.open_ended import MSVDQA, ActivityNetQA
from divot_lightning.evaluation.benchmarks.perception_test import PerceptionTest
from divot_lightning.evaluation.benchmarks.stories import ToyStories
from divot_lightning.evaluation.benchmarks.toy import (
    Toy,
    ToyCaptions,
    ToyOpenCaptions,
    ToyProbe,
    ToyQuestions,
    ToyRealClips,
    ToyReconstruction,
)
from divot_lightning.parts.registries.kinds import BENCHMARKS
from divot_lightning.testing.benchmark_conformance import BenchmarkConformance

VIDEO = b"some bytes"


class OfFiles(BenchmarkConformance):
    def files(self):
        raise NotImplementedError

    def write_data(self, folder):
        for name, content in self.files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return folder


class OfChoices(OfFiles):
    def right_answer(self, item):
        return f"({LETTERS[item.choice]})"


class TestEgoSchema(OfChoices):
    def make_benchmark(self):
        return EgoSchema()

    def files(self):
        options = {f"option {n}": f"text {n}" for n in range(5)}
        questions = [{"q_uid": name, "question": "what ?", **options} for name in ("u", "v")]
        videos = {f"videos/{name}.mp4": VIDEO for name in ("u", "v")}
        return {"questions.json": questions, "subset_answers.json": {"u": 1, "v": 4}, **videos}


class TestPerceptionTest(OfChoices):
    def make_benchmark(self):
        return PerceptionTest(unparsed_as=2)

    def files(self):
        question = {"question": "what ?", "options": ["x", "y", "z"], "answer_id": 1, "area": "physics"}
        entry = {"mc_question": [{"id": n, **question} for n in (0, 1)], "metadata": {"frame_rate": 8}}
        return {"all_valid.json": {"v": entry}, "cut_frame_mapping_valid.json": {"v": -1}, "videos/v.mp4": VIDEO}


class TestMVBench(OfChoices):
    @pytest.fixture(autouse=True)
    def folder(self, mvbench):
        self.copy = mvbench

    def make_benchmark(self):
        return MVBench(choice_rule="videollama2_v1.5_mvbench")

    def write_data(self, folder):
        return self.copy


class TestMSVDQA(OfFiles):
    def make_benchmark(self):
        return MSVDQA()

    def files(self):
        entries = [{"id": n, "video_id": 1, "question": "what ?", "answer": "dog"} for n in (1, 2)]
        return {"test_qa.json": entries, "videos/vid1.avi": VIDEO}

    def right_answer(self, item):
        return item.answer


class TestActivityNetQA(TestMSVDQA):
    def make_benchmark(self):
        return ActivityNetQA()

    def files(self):
        questions = [{"question_id": n, "video_name": "a", "question": "what ?"} for n in ("q1", "q2")]
        answers = [{"question_id": n, "answer": "dog", "type": 3} for n in ("q1", "q2")]
        return {"test_q.json": questions, "test_a.json": answers, "videos/v_a.mp4": VIDEO}


class TestMSRVTT(OfFiles):
    def make_benchmark(self):
        return MSRVTT()

    def files(self):
        names, captions = ("video0", "video1"), ("a dog runs fast", "the brown dog is running")
        info = {"videos": [{"video_id": name, "split": "test"} for name in names]}
        info["sentences"] = [{"video_id": name, "caption": f"{text} {name}"} for name in names for text in captions]
        return {"test_videodatainfo.json": info, **{f"TestVideo/{name}.mp4": VIDEO for name in names}}

    def right_answer(self, item):
        return item.references[0]


class TestMSRVTTGeneration(TestMSRVTT):
    @pytest.fixture(autouse=True)
    def folder(self, clip_folder):
        self.clip_model = str(clip_folder)

    def make_benchmark(self):
        return MSRVTTGeneration(clip_model=self.clip_model)

    def right_answer(self, item):
        return None


class TestReconstruction(OfFiles):
    def make_benchmark(self):
        return Reconstruction()

    def files(self):
        return {"a.mp4": VIDEO, "more/b.webm": VIDEO, "notes.txt": b"-"}


class OfToyShards(BenchmarkConformance):
    benchmark = Toy

    @pytest.fixture(autouse=True)
    def folder(self, toy_data):
        self.shards = toy_data

    def make_benchmark(self):
        return self.benchmark()

    def write_data(self, folder):
        return self.shards


class TestToy(OfToyShards):
    pass


class TestToyOpenCaptions(OfToyShards):
    benchmark = ToyOpenCaptions


class TestReconstructionOfShards(OfToyShards):
    benchmark = Reconstruction

    def write_data(self, folder):
        return self.shards / "held_out"


class TestToyReconstruction(OfToyShards):
    benchmark = ToyReconstruction


class TestToyRealClips(OfToyShards):
    benchmark = ToyRealClips


class TestToyProbe(OfToyShards):
    benchmark = ToyProbe


class TestToyQuestions(OfToyShards):
    benchmark = ToyQuestions

    def right_answer(self, item):
        return item.answer


class TestToyCaptions(OfToyShards):
    benchmark = ToyCaptions

    def right_answer(self, item):
        return item.references[0]


class TestToyStories(BenchmarkConformance):
    def make_benchmark(self):
        return ToyStories("independent")

    def write_data(self, folder):
        write_toy_data(folder, ToyStoryConfig(train=1, validation=1, held_out=2))
        return folder


def test_every_built_in_benchmark_is_tested():
    tested = {name.removeprefix("Test") for name in globals() if name.startswith("Test")}
    ours = [
        part.class_path.rpartition(".")[2] for part in BENCHMARKS.installed() if part.distribution == "divot-lightning"
    ]
    assert set(ours) <= tested
