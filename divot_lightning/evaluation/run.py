"""Evaluate a run: select items, predict on all processes, then score the predictions."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from divot_lightning.checkpoint.run_components import find_component, weights_sha256
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.chosen_items import ChosenItems, by_video, choose_items
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.config_checks import SUPPLIED
from divot_lightning.evaluation.judges.endpoint import EndpointReplier, Limits
from divot_lightning.evaluation.judges.judge import Judge, Replier
from divot_lightning.evaluation.judges.local import LocalReplier
from divot_lightning.evaluation.judges.prompts import JudgePrompt, load_prompt
from divot_lightning.evaluation.predictions import PredictionStore, written_alone
from divot_lightning.evaluation.processes import joined_processes, local_device
from divot_lightning.evaluation.runners.clip_runners import GenerationRunner, ReconstructionRunner, ReferenceRunner
from divot_lightning.evaluation.runners.feature_runner import FeatureRunner
from divot_lightning.evaluation.runners.question_runner import QuestionRunner
from divot_lightning.evaluation.runners.runner import Job, Runner
from divot_lightning.evaluation.runners.story_runner import StoryRunner
from divot_lightning.evaluation.scoring import EvaluationResult, Scoring
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import Benchmark, Predicts
from divot_lightning.training.run_folder import read_finished

RUNNERS: dict[Predicts, type[Runner]] = {
    "answers": QuestionRunner,
    "clips": GenerationRunner,
    "reconstructions": ReconstructionRunner,
    "stories": StoryRunner,
    "features": FeatureRunner,
    "references": ReferenceRunner,
}
"""By what a benchmark predicts."""


def evaluate(run: str | Path, config: EvaluationConfig) -> EvaluationResult:
    """Measure a run on a benchmark; resume where an earlier call was stopped.

    Predictions are computed once and stored. Rule, judge, metrics and limit are applied to them by every call.

    Args:
        run: Run folder of a stage with the models that the benchmark needs.
        config: The benchmark and the settings.

    Returns:
        The scores, on the first process only, and their folder.

    Raises:
        UserError: The config, the data or the run is wrong, or the output folder holds predictions of another protocol.
    """
    benchmark, name, split = find_benchmark(config)
    prompt = load_prompt(config.judge.prompt, config.judge.prompt_file)
    folder = Path(config.output or Path(run) / "evaluation" / f"{name}-{split}")
    with joined_processes() as processes:
        chosen = choose_items(benchmark, name, config, split)
        benchmark.check(chosen.items)
        device = local_device(config.device)
        judge = make_judge(config, prompt, folder)
        metrics = benchmark.make_metrics(chosen.items, device)
        for metric in metrics:
            metric.distributed_available_fn = lambda: False  # the first process computes the scores from all rows
        runner = RUNNERS[benchmark.predicts](Job(run, config, benchmark, metrics, device, folder))
        protocol = _protocol(run, config, benchmark, chosen, runner)
        with written_alone(folder, processes.rank) as store:
            rows, protocol = _predict(runner, chosen, store, processes, protocol, judge)
            if processes.rank:
                return EvaluationResult([], folder)
            return Scoring(benchmark, metrics, config, chosen, protocol, folder).finish(rows, judge)


def _protocol(
    run: str | Path, config: EvaluationConfig, benchmark: Benchmark, chosen: ChosenItems, runner: Runner
) -> dict[str, Any]:
    """Return what decides the predictions."""
    own = {key: value for key, value in benchmark.init_args.items() if key not in (*SUPPLIED, *benchmark.places)}
    return {
        **chosen.describe_files(),
        **({"benchmark_settings": own} if own else {}),
        "weights": weights_kind(run, runner.components, config.generation.detokenizer),
        **runner.describe(),
        **({"items_of_one_seed": len(chosen.items)} if runner.one_seed else {}),
        "model": describe_model(run, runner.components, config.generation.detokenizer) | runner.sampling_config,
    }


def describe_model(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, Any]:
    """Return the content hashes of the measured components, and the run folder."""
    found = {name: weights_sha256(folder) for name, folder in _folders(run, components, detokenizer).items()}
    return {"run": str(run), **found}


def weights_kind(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, str]:
    """Return for each component which weights its run exported, "trained" if the run does not say."""
    folders = _folders(run, components, detokenizer)
    return {name: str(read_finished(folder.parent).get("weights", "trained")) for name, folder in folders.items()}


def _folders(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, Path]:
    sources = {name: detokenizer if name == "detokenizer" and detokenizer else run for name in components}
    return {name: find_component(source, name) for name, source in sources.items()}


def make_judge(config: EvaluationConfig, prompt: JudgePrompt, folder: Path) -> Judge | None:
    """Build the judge of the config, None if it has none.

    Args:
        config: Of the evaluation.
        prompt: Its prompt.
        folder: Of the evaluation; the judge's replies are stored in it.
    """
    chosen = config.judge
    if chosen.kind == "none":
        return None
    replier: Replier
    if chosen.kind == "local":
        assert chosen.max_tokens is not None  # check_config
        replier = LocalReplier(
            chosen.model,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_tokens=chosen.max_tokens,
            device=config.device,
        )
    else:
        decoding = {"temperature": chosen.temperature, "top_p": chosen.top_p, "max_tokens": chosen.max_tokens}
        limits = Limits(chosen.concurrency, chosen.max_requests, timeout=chosen.timeout)
        replier = EndpointReplier(chosen.url, chosen.model, decoding, limits)
    return Judge(prompt, replier, folder, chosen.attempts)


def _predict(
    runner: Runner,
    chosen: ChosenItems,
    store: PredictionStore,
    processes: Ranks,
    protocol: Mapping[str, Any],
    judge: Judge | None,
) -> tuple[list[Row], dict[str, Any]]:
    """Predict the missing items; on the first process, return the rows of all items and their protocol."""
    sizes, recorded = chosen.media_sizes, dict[str, Any]()
    with closing(store):
        finished = {item: row for item, row in store.rows().items() if _is_current(row, sizes)}
        left = [(number, item) for number, item in chosen.numbered if not _is_finished(runner, finished.get(item.id))]
        if processes.rank == 0:
            recorded = store.check_protocol(protocol, complete=not left)
            if judge is not None and left:
                judge.check()  # now, since the predictions may take days
        processes.wait()  # no process writes before all have read
        groups = [list(chosen.numbered)] if left and runner.one_seed else by_video(left)
        own = processes.mine(groups)
        with tqdm(total=sum(map(len, own)), desc="items", unit="item", disable=processes.rank > 0) as bar:
            for group in own:
                size = sizes[group[0][1].media_name]
                store.append({**row, "media_size": size} for row in runner.run(group, finished))
                bar.update(len(group))
        processes.wait()
        found = store.rows() if processes.rank == 0 else {}
    return [found[item.id] for item in chosen.items] if found else [], recorded


def _is_current(row: Row, sizes: Mapping[str, int]) -> bool:
    """Return whether a row belongs to the current video; a video that was replaced has another size."""
    size = sizes.get(row["media"])
    return size is None or row.get("media_size", size) == size


def _is_finished(runner: Runner, row: Row | None) -> bool:
    """Return whether an item needs no prediction; a video that could not be read is tried again."""
    return row is not None and "error" not in row and runner.is_finished(row)
