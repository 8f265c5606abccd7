"""Config of `divot evaluate`; each field is an option and a key of a recipe. No torch in here."""

from dataclasses import dataclass, field
from typing import Any, Literal

from divot_datamodules.decoding.clip_sampling import MAX_CLIPS
from divot_lightning.errors import UserError
from divot_lightning.evaluation.judges.prompts import PromptName
from divot_lightning.inference.clip_requests import ClipOpening
from divot_lightning.parts.benchmarks import Benchmark, Predicts

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
        detokenizer: Run folder that trained the de-tokenizer; null takes the one of the run.
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
        kept_clips: Number of first items whose clips are copied into OUTPUT/generation, to be looked at; of
            reconstructions also the originals, and of at most 16 a video of both side by side; of stories a folder with
            videos.
        store_clips: Whether every clip is stored in OUTPUT/clips, so that a metric that is added later needs no new
            clip; a clip of 256x256 takes up to 3 MB. Otherwise clips are generated again, the same by their seeds.
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
        data: Folder of the benchmark, see docs/evaluation.md; for reconstruction a folder of videos, or shards.
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


SUPPLIED = {
    "choice_rule": "choice_rule",
    "unparsed_as": "unparsed_as",
    "clip_model": "generation.clip_model",
    "video_features": "generation.video_features",
    "video_feature_options": "generation.video_feature_options",
    "lpips": "generation.lpips",
    "lpips_network": "generation.lpips_network",
}
"""Arguments that a benchmark may take, and the settings that supply them."""

EFFECTS: dict[str, tuple[Predicts, ...]] = {
    "generation": ("clips", "reconstructions", "stories", "references"),
    "generation.one_seed": ("clips", "reconstructions"),
    "generation.head": ("clips", "stories"),
    "generation.request": ("clips",),
    "generation.opening": ("clips",),
    "generation.detokenizer": ("clips", "stories"),
    "generation.num_tokens": ("reconstructions",),
    "generation.store_clips": ("clips", "reconstructions", "references"),
    "temperature": ("answers", "clips", "stories"),
    "template": ("answers", "clips", "stories"),
    "prompt": ("answers",),
    "max_clips": ("answers",),
    "max_new_tokens": ("answers", "stories"),
    "top_p": ("answers",),
}
"""What a benchmark must predict for a setting to have an effect."""


def setting_of(config: EvaluationConfig, name: str) -> Any:
    """Return a setting by its dotted name."""
    value: Any = config
    for word in name.split("."):
        value = getattr(value, word)
    return value


def check_config(config: EvaluationConfig, benchmark: Benchmark, name: str) -> None:
    """Refuse a config that cannot work for a benchmark, or that has settings without effect on it.

    Args:
        config: The config.
        benchmark: The benchmark.
        name: Its name.

    Raises:
        UserError: A setting is wrong; the message names it.
    """
    for key in ("max_clips", "max_new_tokens", "limit"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"{key} is {value}; it must be at least 1")
    if not 0.0 < config.top_p <= 1.0:
        raise UserError(f"top_p is {config.top_p}; it must be above 0 and at most 1")
    if config.temperature is not None and config.temperature < 0:
        raise UserError(f"temperature is {config.temperature}; it must be 0 or more")
    _refuse_idle(config, benchmark, name)
    _check_prompt(config.prompt, benchmark.default_prompt)
    _check_judge(config.judge)


def is_set(config: EvaluationConfig, name: str) -> bool:
    """Return whether a setting differs from its default."""
    return bool(setting_of(config, name) != setting_of(EvaluationConfig("", ""), name))


def _refuse_idle(config: EvaluationConfig, benchmark: Benchmark, name: str) -> None:
    idle = [key for key, kinds in EFFECTS.items() if benchmark.predicts not in kinds and is_set(config, key)]
    if is_set(config, "judge") and not benchmark.is_open:
        idle.append("judge")
    if idle:
        raise UserError(f"{idle[0]} has no effect on {name}; leave it out")


def _check_judge(judge: JudgeConfig) -> None:
    required = {"local": ("model",), "endpoint": ("model", "url")}.get(judge.kind, ())
    for name in required:
        if not getattr(judge, name):
            raise UserError(f"judge.kind is {judge.kind!r}, which needs judge.{name}")
    for name in ("max_tokens", "attempts", "concurrency", "max_requests"):
        value = getattr(judge, name)
        if value is not None and value < 1:
            raise UserError(f"judge.{name} is {value}; it must be at least 1")
    if judge.temperature is not None and judge.temperature < 0:
        raise UserError(f"judge.temperature is {judge.temperature}; it must be 0 or more")
    if judge.top_p is not None and not 0.0 < judge.top_p <= 1.0:
        raise UserError(f"judge.top_p is {judge.top_p}; it must be above 0 and at most 1")
    if judge.timeout <= 0:
        raise UserError(f"judge.timeout is {judge.timeout}; it must be above 0")
    if judge.kind == "local" and judge.max_tokens is None:
        raise UserError("judge.max_tokens is null, which only an endpoint can fill in; give a number")


def _check_prompt(prompt: str | None, default: str | None) -> None:
    """Check that a prompt has the fields of the benchmark's own."""
    if prompt is None:
        return
    fields = [name for name in ("question", "options") if f"{{{name}}}" in (default or "")]
    try:
        prompt.format(**dict.fromkeys(fields, ""))
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields) or "none"
        raise UserError(f"prompt {prompt!r} has a field {error} that is not known; known here: {known}") from error
    missing = next((name for name in fields if f"{{{name}}}" not in prompt), None)
    if missing:
        raise UserError(f"prompt {prompt!r} lacks {{{missing}}}")
