"""Refuse settings of `divot evaluate` that cannot work, or that have no effect on the benchmark. No torch in here."""

from typing import Any

from divot_lightning.errors import FORMAT_ERRORS, UserError, require_at_least, require_seed
from divot_lightning.evaluation.config import EvaluationConfig, JudgeConfig
from divot_lightning.inference.command_options import check_ask_options, check_top_p, refuse_idle_top_p
from divot_lightning.parts.benchmarks import Benchmark, Predicts

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
    require_at_least(1, limit=config.limit)
    require_seed(config.seed)
    check_ask_options(config.max_clips, config.max_new_tokens, config.temperature or 0.0, config.top_p)
    refuse_idle_top_p(config.temperature, config.top_p)
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
        require_at_least(1, "judge.", **{name: getattr(judge, name)})
    require_at_least(0, "judge.", temperature=judge.temperature)
    if judge.top_p is not None:
        check_top_p(judge.top_p, "judge.")
    if not judge.timeout > 0:
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
    except FORMAT_ERRORS as error:
        known = ", ".join(f"{{{name}}}" for name in fields) or "none"
        raise UserError(f"prompt {prompt!r} cannot be filled: {error}; known here: {known}") from error
    missing = next((name for name in fields if f"{{{name}}}" not in prompt), None)
    if missing:
        raise UserError(f"prompt {prompt!r} lacks {{{missing}}}")
