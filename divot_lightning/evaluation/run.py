"""One evaluation from beginning to end: items, predictions on all processes, judging, scores with their protocol."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from divot_datamodules.benchmarks.items import BenchmarkData, BenchmarkItem
from divot_datamodules.benchmarks.table import Benchmark, find_benchmark
from divot_lightning.components import find_component, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.evaluation.asking import QuestionRunner
from divot_lightning.evaluation.benchmark_scores import measure
from divot_lightning.evaluation.comparison import SCORES
from divot_lightning.evaluation.drawing import GenerationRunner
from divot_lightning.evaluation.judge_endpoint import JudgeEndpoint
from divot_lightning.evaluation.judges import JUDGE_PROMPT, Judge, LocalJudge, OpenAnswer
from divot_lightning.evaluation.kept_clips import gather_clips
from divot_lightning.evaluation.predictions import PredictionStore, Row
from divot_lightning.evaluation.processes import Processes, joined_processes, local_device
from divot_lightning.evaluation.protocol import file_sha256, library_versions, listing_sha256
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.evaluation.settings import EvaluationSettings, JudgeSettings, check_settings
from divot_lightning.evaluation.submissions import write_submission
from divot_lightning.runs.run_folder import FINISHED

JUDGE_CACHE = "judge_cache"
Numbered = tuple[int, BenchmarkItem]


class Runner(Protocol):
    """Answers or draws; `components` are the parts of a run that take part, `model_settings` how they sample."""

    components: tuple[str, ...]
    model_settings: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Says what decides the predictions besides the models."""
        ...

    def run(self, items: Sequence[Numbered]) -> list[Row]:
        """Gives one row per item; the items are of one video."""
        ...


def evaluate(run: str | Path, settings: EvaluationSettings) -> tuple[list[Score], Path]:
    """Measures a run on a benchmark; goes on where an earlier start was stopped.

    Args:
        run: Run folder of a stage that trains a video LLM.
        settings: What is measured and how.

    Returns:
        The scores, on the first process only, and the folder of predictions and scores.

    Raises:
        UserError: Something in settings, data or run is wrong; or the folder holds an evaluation made in another way.
    """
    benchmark, split = find_benchmark(settings.benchmark, settings.split)
    check_settings(settings, benchmark.task)
    judge_settings = check_judge(settings.judge)
    folder = Path(settings.output or Path(run) / "evaluation" / settings.benchmark)
    with joined_processes() as processes:
        data, skipped = _items(benchmark, settings, split)
        device = local_device(settings.device)
        runner: Runner = (
            GenerationRunner(run, settings, benchmark.toy, device, folder)
            if benchmark.task == "generation"
            else QuestionRunner(run, settings, benchmark.task, device)
        )
        model = describe_model(run, runner.components, settings.generation.detokenizer) | runner.model_settings
        protocol = {
            **_describe_data(settings.benchmark, split, data, skipped),
            "weights": weights_kind(run, runner.components, settings.generation.detokenizer),
            **runner.describe(),
        }
        rows = _predict(
            runner, data.items, PredictionStore(folder, processes.rank), processes, protocol | {"model": model}
        )
        if processes.rank:
            return [], folder
        return _finish(settings, benchmark, judge_settings, data.items, rows, protocol, model, folder), folder


def check_judge(settings: JudgeSettings) -> tuple[JudgeSettings, str]:
    """Returns the judge's settings and prompt, read from its file if there is one.

    Raises:
        UserError: There is no such file.
    """
    if settings.prompt_file is None:
        return settings, JUDGE_PROMPT
    path = Path(settings.prompt_file)
    if not path.is_file():
        raise UserError(f"judge.prompt_file {settings.prompt_file} is not there")
    return settings, path.read_text(encoding="utf-8")


def describe_model(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, Any]:
    """Returns the content hashes of the components that are measured, and where they lie."""
    found = {name: weights_sha256(folder) for name, folder in _folders(run, components, detokenizer).items()}
    return {"run": str(run), **found}


def weights_kind(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, str]:
    """Says of each component whether its run handed on averaged weights, "trained" where the run does not say so."""
    kinds = {}
    for name, folder in _folders(run, components, detokenizer).items():
        mark = folder.parent / FINISHED
        finished = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}
        kinds[name] = str(finished.get("weights", "trained"))
    return kinds


def _folders(run: str | Path, components: Sequence[str], detokenizer: str | None) -> dict[str, Path]:
    sources = {name: detokenizer if name == "detokenizer" and detokenizer else run for name in components}
    return {name: find_component(source, name) for name, source in sources.items()}


def _items(benchmark: Benchmark, settings: EvaluationSettings, split: str) -> tuple[BenchmarkData, int]:
    data = benchmark.read(settings.data, split)
    missing = data.missing
    if missing and settings.missing == "refuse":
        raise UserError(
            f"{settings.benchmark}: {len(missing)} videos are not there, the first is {missing[0]} in {settings.data}\n"
            "To leave their items out, which the score then says: --missing skip"
        )
    there = [item for item in data.items if item.media is not None]
    if not there:
        raise UserError(f"{settings.benchmark}: none of its videos is in {settings.data}")
    skipped = len(data.items) - len(there)
    return replace(data, items=tuple(there[: settings.limit])), skipped


def _describe_data(name: str, split: str, data: BenchmarkData, skipped: int) -> dict[str, Any]:
    sizes = {item.media_name: _size(item) for item in data.items}
    return {
        "benchmark": name,
        "split": split,
        "files": {name: file_sha256(path) for name, path in data.files.items()},
        "videos": {"count": len(sizes), "names_and_sizes_sha256": listing_sha256(sizes.items())},
        "items_without_video": skipped,
        "versions": library_versions(),
    }


def _size(item: BenchmarkItem) -> int:
    if isinstance(item.media, bytes):
        return len(item.media)
    assert item.media is not None
    if item.media.is_dir():
        return sum(path.stat().st_size for path in item.media.iterdir())
    return item.media.stat().st_size


def _predict(
    runner: Runner,
    items: Sequence[BenchmarkItem],
    store: PredictionStore,
    processes: Processes,
    protocol: Mapping[str, Any],
) -> list[Row]:
    """Finishes the items that are missing; on the first process, returns the rows of all."""
    with store:
        if processes.rank == 0:
            store.claim({name: value for name, value in protocol.items() if name != "videos"})
        processes.wait()
        finished = store.rows()
        processes.wait()  # nobody writes before everybody has read
        waiting = [group for group in _by_video(items) if any(item.id not in finished for _, item in group)]
        share = processes.share(waiting)
        with tqdm(total=sum(map(len, share)), desc="items", unit="item", disable=processes.rank > 0) as bar:
            for group in share:
                left = [numbered for numbered in group if numbered[1].id not in finished]
                store.append(runner.run(left))
                bar.update(len(group))
        processes.wait()
        found = store.rows() if processes.rank == 0 else {}
    return [found[item.id] for item in items] if found else []


def _by_video(items: Sequence[BenchmarkItem]) -> list[list[Numbered]]:
    """Puts the items of one video, or of one part of it, together, in the order in which they come up."""
    groups: dict[Any, list[Numbered]] = defaultdict(list)
    for number, item in enumerate(items):
        groups[item.media_name, item.bounds].append((number, item))
    return list(groups.values())


def _finish(
    settings: EvaluationSettings,
    benchmark: Benchmark,
    judge_settings: tuple[JudgeSettings, str],
    items: Sequence[BenchmarkItem],
    rows: list[Row],
    protocol: dict[str, Any],
    model: dict[str, Any],
    folder: Path,
) -> list[Score]:
    rules = _rules(settings, benchmark)
    judge = make_judge(*judge_settings, folder, settings.device)
    if judge is not None:
        _judge(judge, items, rows)
        rules["judge"] = judge.describe()
    values = measure(benchmark, items, rows, settings)
    for row in rows:
        if "scores" in row:
            row["scores"] = {f"{settings.benchmark}/{name}": value for name, value in row["scores"].items()}
    described = {**protocol, **rules}
    scores = [
        Score(f"{settings.benchmark}/{name}", value, count, described, model) for name, (value, count) in values.items()
    ]
    store = PredictionStore(folder)
    store.merge(rows)
    gather_clips(folder, rows)
    if benchmark.task == "choice":
        write_submission(settings.benchmark, folder, items, rows)
    save_scores(scores, folder / SCORES)
    return scores


def _rules(settings: EvaluationSettings, benchmark: Benchmark) -> dict[str, Any]:
    if benchmark.task != "choice":
        return {}
    return {"choice_rule": settings.choice_rule, "unparsed_as": settings.unparsed_as}


def make_judge(settings: JudgeSettings, prompt: str, folder: Path, device: str) -> Judge | None:
    """Builds the judge that is asked for, None for none.

    Args:
        settings: Which.
        prompt: What it is asked.
        folder: Of the evaluation; an endpoint's replies are kept in it.
        device: Where a local model runs.
    """
    if settings.kind == "none":
        return None
    if settings.kind == "local":
        return LocalJudge(settings.model, prompt=prompt, device=device)
    return JudgeEndpoint(
        settings.url,
        settings.model,
        folder / JUDGE_CACHE,
        prompt=prompt,
        concurrency=settings.concurrency,
        max_requests=settings.max_requests,
    )


def _judge(judge: Judge, items: Sequence[BenchmarkItem], rows: Sequence[Row]) -> None:
    asked = [(item, row) for item, row in zip(items, rows, strict=True) if "error" not in row]
    answers = [OpenAnswer(item.question, str(item.answer), row["said"]) for item, row in asked]
    for (_, row), verdict in zip(asked, judge.judge(answers), strict=True):
        row["judged"] = verdict
