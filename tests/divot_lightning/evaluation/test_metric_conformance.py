"""The built-in metrics keep the contract of a metric."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from divot_datamodules.toy.stories import sample_story
from divot_datamodules.toy.world import ATTRIBUTES, BACKGROUND, Scene, ToyWorld, caption
from divot_lightning.evaluation.answers.accuracy import ChoiceAccuracy, OpenAnswerAccuracy
from divot_lightning.evaluation.answers.text_match import ToyCaptionAccuracy
from divot_lightning.evaluation.metrics.caption_metrics import CaptionScores
from divot_lightning.evaluation.metrics.clip_similarity import ClipSimilarity
from divot_lightning.evaluation.metrics.frechet_video import FrechetVideoDistance, ToyFrechet
from divot_lightning.evaluation.metrics.image_quality import LPIPS, PSNR, SSIM
from divot_lightning.evaluation.metrics.probe import ToyProbe, probe_accuracy
from divot_lightning.evaluation.metrics.toy_open_oracle import ToyOpenOracle
from divot_lightning.evaluation.metrics.toy_oracle import ToyOracle
from divot_lightning.evaluation.metrics.toy_story import ToyStory
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.registries.kinds import METRICS
from divot_lightning.parts.registries.registry import class_path
from divot_lightning.testing.metric_conformance import MetricConformance
from tests.divot_lightning.evaluation.random_lpips import alexnet_weights, random_network

SCENES = [
    Scene(*("red", "circle", "up", "slowly"), 20.0, 16.0),
    Scene(*("red", "circle", "up", "slowly"), 22.0, 12.0),
    Scene(*("blue", "square", "left", "slowly"), 16.0, 20.0),
    Scene(*("blue", "square", "left", "slowly"), 12.0, 22.0),
    Scene(*("green", "cross", "right", "slowly"), 16.0, 12.0),
]


def render(scenes):
    world = ToyWorld(size=32)
    return [torch.from_numpy(world.render(scene)) for scene in scenes]


def item_of(scene):
    facts = {"attributes": {name: getattr(scene, name) for name in ATTRIBUTES}, "caption": caption(scene)}
    facts |= {"start": [scene.start_row, scene.start_column], "prompt": caption(scene)}
    facts |= {"named": {"shape": scene.shape}}
    return BenchmarkItem("", None, "", answer="red", references=(caption(scene), "a red circle"), facts=facts)


class OfClips(MetricConformance):
    def samples(self, clips):
        pairs = zip(clips, render(SCENES), strict=True)
        return [(Prediction(clip=a, original=b), item_of(s)) for (a, b), s in zip(pairs, SCENES, strict=True)]

    def make_samples(self):
        noise = np.random.default_rng(0).integers(-30, 31, (5, 16, 3, 32, 32))
        noisy = [
            (clip + torch.from_numpy(part)).clamp(0, 255).byte()
            for clip, part in zip(render(SCENES), noise, strict=True)
        ]
        return self.samples([noisy[1], noisy[0], *render(SCENES)[2:4], noisy[4]])

    def make_perfect(self):
        return self.samples(render(SCENES))


class OfAnswers(MetricConformance):
    said = ("a red circle moves up slowly", "red", "a blue square", "", "The red.")

    def make_samples(self):
        return [(Prediction(text, parsed=text), item_of(s)) for text, s in zip(self.said, SCENES, strict=True)]


class TestPSNR(OfClips):
    metric = PSNR

    def make_metric(self):
        return PSNR()

    def make_samples(self):
        return [pair for at, pair in enumerate(super().make_samples()) if at not in (2, 3)] * 2


class TestSSIM(OfClips):
    metric = SSIM

    def make_metric(self):
        return SSIM()


class TestToyOracle(OfClips):
    metric = ToyOracle

    def make_metric(self):
        return ToyOracle(start_error=True)


class TestToyStory(MetricConformance):
    metric = ToyStory

    def make_metric(self):
        return ToyStory()

    def make_samples(self):
        perfect = self.make_perfect()
        torn = [replace(prediction, clips=prediction.clips[::-1]) for prediction, _ in perfect]
        return [*perfect, *((prediction, item) for prediction, (_, item) in zip(torn, perfect, strict=True))]

    def make_perfect(self):
        found = []
        for seed in range(3):
            story = sample_story(ToyWorld(), "train", np.random.default_rng(seed))
            facts = {"scenes": [asdict(scene) for scene in story.scenes], "changes": story.changes}
            item = BenchmarkItem(str(seed), None, "", facts={**facts, "continuous": False, "background": BACKGROUND})
            found.append((Prediction(sentences=tuple(story.sentences), clips=tuple(render(story.scenes))), item))
        return found


class TestToyOpenOracle(OfClips):
    metric = ToyOpenOracle

    def make_metric(self):
        return ToyOpenOracle()


class TestToyFrechet(OfClips):
    metric = ToyFrechet

    tolerance = 1e-6

    def make_metric(self):
        return ToyFrechet()


class TestToyProbe(MetricConformance):
    metric = ToyProbe

    def make_metric(self):
        return ToyProbe()

    def make_samples(self):
        """Two clips of each scene to fit on and one to test on, whose tokens are its colour and its speed."""
        found = []
        for at, scene in enumerate(SCENES * 3):
            item, noise = item_of(scene), 0.01 * torch.rand(2, 2, generator=torch.Generator().manual_seed(at))
            tokens = torch.tensor([[sum(map(ord, scene.colour)), len(scene.shape)], [0, 1]]) + noise
            facts = {**item.facts, "fit": at < 2 * len(SCENES), "order": at}
            found.append((Prediction(features=tokens), replace(item, facts=facts)))
        return found

    def test_the_order_is_that_of_the_benchmark(self):
        """The probe's penalty is chosen on the last clips; so it must know which are the last."""
        metric, samples = self.make_metric(), self.make_samples()
        metric.update([metric.measure(*sample) for sample in samples], [item for _, item in samples])
        train = [sample for sample in samples if sample[1].facts["fit"]]
        test = [sample for sample in samples if not sample[1].facts["fit"]]
        tokens = [torch.stack([prediction.features.flatten() for prediction, _ in part]) for part in (train, test)]
        labels = [[item.facts["attributes"]["shape"] for _, item in part] for part in (train, test)]
        assert metric.compute()["shape"] == probe_accuracy(tokens[0], labels[0], tokens[1], labels[1])


class TestOpenAnswers(OfAnswers):
    metric = OpenAnswerAccuracy

    def make_metric(self):
        return OpenAnswerAccuracy()

    def make_perfect(self):
        return [(Prediction("red", "red"), item_of(scene)) for scene in SCENES]


class TestToyCaptions(OfAnswers):
    metric = ToyCaptionAccuracy

    def make_metric(self):
        return ToyCaptionAccuracy()

    def make_perfect(self):
        return [(Prediction(caption(scene)), item_of(scene)) for scene in SCENES]


class TestCaptions(OfAnswers):
    metric = CaptionScores

    def make_metric(self):
        return CaptionScores()

    def make_perfect(self):
        return [(Prediction(caption(scene)), item_of(scene)) for scene in SCENES]


class TestChoiceAccuracy(MetricConformance):
    metric = ChoiceAccuracy

    def make_metric(self):
        return ChoiceAccuracy(["x", "y"], unparsed_as=2)

    def make_samples(self):
        items = [BenchmarkItem("", None, "", choice=at % 3, group="xxy"[at % 3]) for at in range(6)]
        return [(Prediction(parsed=choice), item) for choice, item in zip([0, 1, None, 1, None, 0], items, strict=True)]

    def make_perfect(self):
        return [(Prediction(parsed=item.choice), item) for _, item in self.make_samples()]


class TestClipSimilarity(OfClips):
    metric = ClipSimilarity

    @pytest.fixture(autouse=True)
    def folder(self, clip_folder):
        self.clip_model = str(clip_folder)

    def make_metric(self):
        return ClipSimilarity(self.clip_model)

    def make_perfect(self):
        return ()


class TestFrechetVideoDistance(OfClips):
    metric = FrechetVideoDistance

    tolerance = 1e-6

    @pytest.fixture(autouse=True)
    def network(self, tmp_path):
        self.file = str(tmp_path / "colours.pt")
        torch.jit.script(MeanColour()).save(self.file)

    def make_metric(self):
        return FrechetVideoDistance(self.file, {})


class TestLPIPS(OfClips):
    metric = LPIPS

    @pytest.fixture(autouse=True)
    def weights(self, tmp_path):
        self.file = str(tmp_path / "alexnet.pth")
        torch.save(alexnet_weights(), self.file)

    def make_metric(self):
        with random_network():
            return LPIPS(self.file)

    def test_settings_rebuild_the_metric(self):
        with random_network():
            super().test_settings_rebuild_the_metric()


class MeanColour(torch.nn.Module):
    """A stand-in for I3D."""

    def forward(self, x: torch.Tensor):
        return x.flatten(2).mean(dim=2)


def test_every_built_in_metric_is_tested():
    tested = {class_path(entry.metric) for name, entry in globals().items() if name.startswith("Test")}
    ours = {part.class_path for part in METRICS.installed() if part.distribution == "divot-lightning"}
    assert ours == tested
