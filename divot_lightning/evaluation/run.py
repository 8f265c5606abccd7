"""One evaluation from beginning to end: items, predictions on all processes, then scores with their protocol."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from divot_lightning.checkpoint.components import find_component, weights_sha256
from divot_lightning.evaluation.benchmarks.table import find_benchmark
from divot_lightning.evaluation.chosen_items import ChosenItems, Numbered, by_video, choose_items
from divot_lightning.evaluation.config import EvaluationConfig, check_config, check_metrics
from divot_lightning.evaluation.generation_runner import GenerationRunner
from divot_lightning.evaluation.judges.endpoint import EndpointReplier, Limits
from divot_lightning.evaluation.judges.judge import Judge, Replier
from divot_lightning.evaluation.judges.local import LocalReplier
from divot_lightning.evaluation.judges.prompts import JudgePrompt, load_prompt
from divot_lightning.evaluation.predictions import PredictionStore, Row
from divot_lightning.evaluation.processes import Processes, joined_processes, local_device
from divot_lightning.evaluation.question_runner import QuestionRunner
from divot_lightning.evaluation.scoring import EvaluationResult, Scoring
from divot_lightning.evaluation.submissions import check_submission
from divot_lightning.training.run_folder import FINISHED


class Runner(Protocol):
    """Answers or draws; `components` are the parts of a run that take part, `sampling_config` how they sample."""

    components: tuple[str, ...]
    sampling_config: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return what decides the predictions besides the models."""
        ...

    def describe_metrics(self) -> Mapping[str, Any]:
        """Return what predictions are measured with, by metric, where they are measured one by one."""
        ...

    def is_finished(self, row: Row) -> bool:
        """Return whether a row holds all that is asked for."""
        ...

    def run(self, items: Sequence[Numbered], rows: Mapping[str, Row]) -> list[Row]:
        """Return one row per item; the items are of one video, and `rows` is what is there already, by item."""
        ...


def evaluate(run: str | Path, config: EvaluationConfig) -> EvaluationResult:
    """Measure a run on a benchmark; continues where an earlier start was stopped.

    Predictions are made once and kept; rule, judge, metrics and limit are applied to them at every start.

    Args:
        run: Run folder of a stage that trains a video LLM.
        config: What is measured and how.

    Returns:
        The scores, on the first process only, and where they are.

    Raises:
        UserError: Something in settings, data or run is wrong; or the folder holds an evaluation made in another way.
    """
    benchmark, split = find_benchmark(config.benchmark, config.split)
    check_config(config, benchmark.task)
    check_metrics(config, benchmark.task, benchmark.toy)
    prompt = load_prompt(config.judge.prompt, config.judge.prompt_file)
    folder = Path(config.output or Path(run) / "evaluation" / f"{config.benchmark}-{split}")
    with joined_processes() as processes:
        chosen = choose_items(benchmark, config, split)
        check_submission(config.benchmark, chosen.items, config.unparsed_as)
        device = local_device(config.device)
        judge = make_judge(config, prompt, folder)
        runner: Runner = (
            GenerationRunner(run, config, benchmark.toy, device, folder)
            if benchmark.task == "generation"
            else QuestionRunner(run, config, benchmark.task, device)
        )
        protocol = {
            **chosen.describe_files(),
            "weights": weights_kind(run, runner.components, config.generation.detokenizer),
            **runner.describe(),
            "model": describe_model(run, runner.components, config.generation.detokenizer) | runner.sampling_config,
        }
        rows, protocol = _predict(runner, chosen, PredictionStore(folder, processes.rank), processes, protocol, judge)
        if processes.rank:
            return EvaluationResult([], folder)
        scoring = Scoring(benchmark, config, chosen, protocol, runner.describe_metrics(), folder)
        return scoring.finish(rows, judge)


def describe_model(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, Any]:
    """Return the content hashes of the components that are measured, and where they lie."""
    found = {name: weights_sha256(folder) for name, folder in _folders(run, components, detokenizer).items()}
    return {"run": str(run), **found}


def weights_kind(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, str]:
    """Return of each component whether its run exported averaged weights, "trained" where the run does not say so."""
    kinds = {}
    for name, folder in _folders(run, components, detokenizer).items():
        mark = folder.parent / FINISHED
        finished = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}
        kinds[name] = str(finished.get("weights", "trained"))
    return kinds


def _folders(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, Path]:
    sources = {name: detokenizer if name == "detokenizer" and detokenizer else run for name in components}
    return {name: find_component(source, name) for name, source in sources.items()}


def make_judge(config: EvaluationConfig, prompt: JudgePrompt, folder: Path) -> Judge | None:
    """Build the judge that is asked for, None for none.

    Args:
        config: Of the evaluation.
        prompt: What it is asked.
        folder: Of the evaluation; the judge's replies are kept in it.
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
    processes: Processes,
    protocol: Mapping[str, Any],
    judge: Judge | None,
) -> tuple[list[Row], dict[str, Any]]:
    """Finish the items that are missing; on the first process, returns the rows of all and how they were made."""
    sizes, recorded = chosen.media_sizes, dict[str, Any]()
    with store:
        finished = {item: row for item, row in store.rows().items() if _is_of(row, sizes)}
        left = [(number, item) for number, item in chosen.numbered if not _is_finished(runner, finished.get(item.id))]
        if processes.rank == 0:
            recorded = store.check_protocol(protocol, complete=not left)
            if judge is not None and left:
                judge.check()  # before the predictions, which may take days
        processes.wait()  # nobody writes before everybody has read
        share = processes.share(by_video(left))
        with tqdm(total=sum(map(len, share)), desc="items", unit="item", disable=processes.rank > 0) as bar:
            for group in share:
                size = sizes[group[0][1].media_name]
                store.append({**row, "media_size": size} for row in runner.run(group, finished))
                bar.update(len(group))
        processes.wait()
        found = store.rows() if processes.rank == 0 else {}
    return [found[item.id] for item in chosen.items] if found else [], recorded


def _is_of(row: Row, sizes: Mapping[str, int]) -> bool:
    """Return whether a row is of the video that is there now: a replaced one has another size."""
    size = sizes.get(row["media"])
    return size is None or row.get("media_size", size) == size


def _is_finished(runner: Runner, row: Row | None) -> bool:
    """Return whether an item needs nothing more; a video that could not be read is tried again."""
    return row is not None and "error" not in row and runner.is_finished(row)
