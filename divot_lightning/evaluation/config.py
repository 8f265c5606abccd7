"""Config of `divot evaluate`; each field is an option and a key of a recipe. No torch in here."""

from dataclasses import dataclass, field
from typing import Any, Literal

from divot_datamodules.decoding.clip_sampling import MAX_CLIPS
from divot_lightning.evaluation.judges.prompts import PromptName
from divot_lightning.inference.clip_requests import ClipOpening

ChoiceRule = Literal[
    "letter_or_text",
    "first_letter",
    "videollama2_v1.0_mvbench",
    "videollama2_v1.0_egoschema",
    "videollama2_v1.0_perception_test",
    "videollama2_v1.5_mvbench",
    "videollama2_v1.5_egoschema",
    "videollama2_v1.5_perception_test",
    "lmms_eval_mvbench",
    "lmms_eval_egoschema",
    "lmms_eval_perception_test",
]

CHOICE_PROMPT = (
    "Question: {question}\nOptions:\n{options}\n"
    "Answer with the option's letter from the given choices directly and only give the best option."
)
"""The multiple-choice prompt of VideoLLaMA 2 (arXiv:2406.07476), whose evaluation Divot follows; Divot's own is not
stated. Since v1.5 VideoLLaMA 2 has another prompt for EgoSchema, which recipes/evaluation/egoschema.yaml has. For
open-ended questions its prompt is the question alone."""


@dataclass(frozen=True)
class JudgeConfig:
    """Judge of open-ended answers, besides the comparison of words.

    Attributes:
        kind: "none", "local" for a transformers model, "endpoint" for an OpenAI-compatible one. An endpoint's key is
            read from the environment variable DIVOT_JUDGE_API_KEY and nowhere else.
        model: Folder of the local model, or the model's name at the endpoint.
        url: Base of the endpoint, such as http://127.0.0.1:8000/v1.
        prompt: "yes_no", or "video_chatgpt": a system and a user message that ask for {'pred': 'yes', 'score': 5}.
        prompt_file: A file with {question}, {correct} and {answer} that replaces the words of `prompt`: JSON or YAML
            with `user` and `system`, or a text, which is the user's message. Other braces are ordinary text.
        temperature: 0 is greedy; null takes the endpoint's own.
        top_p: Tokens are sampled from the most likely ones that together have this probability; null takes the
            endpoint's own.
        max_tokens: Longest reply; null takes the endpoint's own. A reasoning model needs more.
        attempts: Largest number of times that an answer is judged, until a reply can be read.
        unjudged_as: How an answer counts if no reply could be read: "wrong", or "left_out" of the score.
        concurrency: Requests to an endpoint at a time.
        max_requests: Requests to an endpoint in all.
        timeout: Seconds for one request to an endpoint.
    """

    kind: Literal["none", "local", "endpoint"] = "none"
    model: str = ""
    url: str = ""
    prompt: PromptName = "yes_no"
    prompt_file: str | None = None
    temperature: float | None = 0.0
    top_p: float | None = None
    max_tokens: int | None = 64
    attempts: int = 3
    unjudged_as: Literal["wrong", "left_out"] = "wrong"
    concurrency: int = 4
    max_requests: int = 20_000
    timeout: float = 60.0


@dataclass(frozen=True)
class GenerationConfig:
    """How clips are generated or reconstructed, and measured.

    Attributes:
        detokenizer: Folder of a run that trained a de-tokenizer; null takes the one of the measured run.
        clip_model: transformers folder of a CLIP model for the similarity with the prompt; null measures none.
        video_features: Feature network of the Frechet video distance: a TorchScript file such as i3d_torchscript.pt, or
            package.module:name; null measures none.
        video_feature_options: Arguments of the network; null takes I3D's for a file.
        lpips: File with torchvision's weights of LPIPS's network, for reconstructions; null measures none.
        lpips_network: The network of that file.
        request: Words that ask for a clip, with {} for the prompt; null takes a phrase of the run's own task. The
            released code has "Generate a video of {}".
        opening: How the model writes text until it begins the clip by itself; {} has the numbers of the released code.
            null: the clip begins at once.
        head: Sampling settings of the run's head by name, such as {variance_scale: 0.5}; null takes the run's own.
        one_seed: Whether all clips are sampled in batches with one seed, by the first process. This is faster for small
            models. Otherwise each clip has a seed of its own, so that it does not depend on the others.
        num_tokens: Leading tokens of each clip that are decoded, for reconstructions; null for all.
        kept_clips: How many of the first items have their clips copied into OUTPUT/generation, to be looked at.
            Reconstructions come with their originals, at most 16 of them also side by side; each story is a folder.
        store_clips: Whether every clip is stored in OUTPUT/clips, so that a metric that is added later needs no new
            clip; a clip of 256x256 takes up to 3 MB. Otherwise clips are generated again, equal because of their seeds.
    """

    detokenizer: str | None = None
    clip_model: str | None = None
    video_features: str | None = None
    video_feature_options: dict[str, Any] | None = None
    lpips: str | None = None
    lpips_network: Literal["alex", "vgg", "squeeze"] = "alex"
    request: str | None = None
    opening: ClipOpening | None = None
    head: dict[str, Any] | None = None
    one_seed: bool = False
    num_tokens: int | None = None
    kept_clips: int = 6
    store_clips: bool = True


@dataclass(frozen=True)
class EvaluationConfig:
    """A benchmark and how a run is evaluated on it.

    Attributes:
        benchmark: Short name or class path of the benchmark, or {class_path, init_args} if it has settings of its own.
            `divot parts benchmarks` lists the installed ones.
        data: Folder of the benchmark, see docs/using/evaluation.md; for reconstruction a folder of videos, or shards.
        split: Split of the benchmark; null takes the usual one.
        output: Folder of predictions and scores; null takes RUN/evaluation/BENCHMARK-SPLIT.
        prompt: Text with {question}, and {options} for multiple choice; null takes the benchmark's.
        template: Form of the prompts that the model was trained on; null takes the run's.
        max_clips: Largest number of clips of a video, five frames each (Divot section 4.1: 20).
        temperature: 0 is greedy; null takes 0 for answers and 1 for the features that the head samples for clips.
        top_p: Tokens are sampled from the most likely ones that together have this probability.
        max_new_tokens: Largest number of tokens of an answer, or of a sentence of a story.
        seed: Seed of all sampling; each item has its own generator, unless `generation.one_seed` is set.
        choice_rule: How an option is read from an answer: "letter_or_text" as a person would, "first_letter" takes the
            first capital letter of an option, the others as the evaluation code of that name does.
        unparsed_as: Index of the option, from 0, that an answer without a choice counts as. null counts it as wrong;
            with VideoLLaMA 2's rules it counts as option 2, as in its code.
        missing: What to do if videos are missing: "refuse", or "skip" their items, which is noted beside the score.
        limit: Largest number of items, from the first on; null takes all.
        judge: Judge of open-ended answers.
        generation: How clips are generated and measured.
        device: cpu or cuda.
    """

    benchmark: str | dict[str, Any]
    data: str
    split: str | None = None
    output: str | None = None
    prompt: str | None = None
    template: Literal["pretraining", "instruction", "chat"] | None = None
    max_clips: int = MAX_CLIPS
    temperature: float | None = None
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0
    choice_rule: ChoiceRule = "letter_or_text"
    unparsed_as: int | None = None
    missing: Literal["refuse", "skip"] = "refuse"
    limit: int | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    device: str = "cpu"
