"""The trained runs that the page shows side by side."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from divot_lightning.checkpoint.run_components import component_names, find_component, read_record, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.inference.loaded_run import load_run
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.io.component_files import CONFIG_FILE
from divot_lightning.io.jsonl import read_object
from divot_lightning.parts.registries.kinds import HEADS

Ability = Literal["reconstruct", "ask", "generate", "story"]
TRAINED_BY: dict[Ability, frozenset[str]] = {
    "reconstruct": frozenset(),
    "ask": frozenset({"question", "conversation"}),
    "generate": frozenset({"generate"}),
    "story": frozenset({"story"}),
}
"""Tasks that teach a video LLM an ability."""

NEEDS: dict[Ability, frozenset[str]] = {
    "reconstruct": frozenset({"tokenizer", "detokenizer"}),
    "ask": frozenset({"tokenizer", "video_llm"}),
    "generate": frozenset({"detokenizer", "video_llm"}),
    "story": frozenset({"detokenizer", "video_llm"}),
}
"""Components that an ability needs."""

LANGUAGE: frozenset[Ability] = frozenset(ability for ability, needed in NEEDS.items() if "video_llm" in needed)
COMPONENTS = frozenset[str]().union(*NEEDS.values())


@dataclass(frozen=True, eq=False)
class System:
    """A run on the page.

    Attributes:
        name: What it is called there; no two have the same name.
        pipeline: Loads the run's models when they are first needed.
        detokenizer: Name of the run whose de-tokenizer it uses; "" for its own.
        head: Short name of its generation head; "" without a video LLM.
        abilities: What can be done with it.
        is_main: Whether it is made with the tokenizer that most runs of its experiment use, and is no control.
    """

    name: str
    pipeline: DivotPipeline
    detokenizer: str
    head: str
    abilities: frozenset[Ability]
    is_main: bool = True

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks that it was trained on; empty if its config does not say."""
        return frozenset(self.pipeline.models.tasks)

    def describe(self) -> dict[str, Any]:
        """Return what the page shows of it, as JSON values."""
        listed = {"abilities": sorted(self.abilities), "tasks": sorted(self.tasks)}
        return {"name": self.name, "head": self.head, "detokenizer": self.detokenizer, **listed}


def preferred(systems: Sequence[System]) -> dict[Ability, list[str]]:
    """Return the names of the runs that are chosen on the page at first: for prompts, one of each head.

    Runs that were trained on what they are used for come first; then those of the main tokenizer.
    """
    chosen: dict[Ability, list[str]] = {}
    for ability in get_args(Ability):
        able = [system for system in systems if ability in system.abilities]
        best = sorted(able, key=lambda system: (not system.is_main, not TRAINED_BY[ability] & system.tasks))
        heads = {system.head: system.name for system in reversed(best) if system.is_main or not best[0].is_main}
        chosen[ability] = list(reversed(heads.values())) if ability == "generate" else [one.name for one in best[:1]]
    return chosen


def find_systems(names: Sequence[str], detokenizer: str | None = None, **options: Any) -> list[System]:
    """Open runs, exported folders, folders of components, hub repositories, and all runs of experiments.

    Args:
        names: Each a run in one of these forms, or the folder of a quickstart or ablation.
        detokenizer: A run whose de-tokenizer all of them use.
        options: Of `LoadedRun`.

    Raises:
        UserError: One of them is no run and holds none.
    """
    systems: list[System] = []
    for name in names:
        runs = experiment_runs(Path(name))
        if runs:
            systems += _experiment(runs, detokenizer, options)
        else:
            systems.append(_open(name, detokenizer, options))
    return _with_different_names(systems)


def experiment_runs(folder: Path) -> list[Path]:
    """Return the finished runs in the folder of an experiment, by name; none if the folder is a run itself."""
    if not folder.is_dir() or _components(folder):
        return []
    return [run for run in sorted(folder.iterdir()) if run.is_dir() and "tokenizer" in _components(run)]


def _components(run: Path) -> frozenset[str]:
    return COMPONENTS & set(component_names(run))


def _trained(run: Path, name: str) -> bool:
    """Return whether a run holds a component itself and did not take it over."""
    return (run / name / CONFIG_FILE).is_file()


def _experiment(runs: Sequence[Path], detokenizer: str | None, options: dict[str, Any]) -> list[System]:
    """Open the runs of an experiment, those with the most common tokenizer first."""
    recorded = {run: read_record(run).get("tokenizer", {}).get("sha256") for run in runs}
    groups = {run: sha256 or weights_sha256(run / "tokenizer") for run, sha256 in recorded.items()}
    order = [sha256 for sha256, _ in Counter(groups.values()).most_common()]
    systems = []
    for group in order:
        members = [run for run in runs if groups[run] == group]
        decoders = sorted(filter(lambda run: _trained(run, "detokenizer"), members), key=_refinement)
        decoder, main = str(decoders[0]) if decoders else None, group == order[0]
        for run in decoders:
            systems.append(_open(str(run), None, options, {"reconstruct"}, main))
        for run in members:
            if _trained(run, "video_llm"):
                systems.append(_open(str(run), detokenizer or decoder, options, LANGUAGE, main))
    return systems


def _refinement(run: Path) -> tuple[bool, bool, str]:
    """Return a sorting key of runs with a de-tokenizer: refined, from the tokenizer's training, adapted.

    An adapted de-tokenizer is trained with one of the heads, so it would favour that head.
    """
    record = read_record(run)
    return "video_llm" in record or _trained(run, "video_llm"), "tokenizer" not in record, run.name


def _open(
    name: str,
    detokenizer: str | None,
    options: dict[str, Any],
    only: Set[Ability] = frozenset(get_args(Ability)),
    is_main: bool = True,
) -> System:
    models = load_run(name, detokenizer, **options)
    if models.detokenizer_run is not None and "detokenizer" not in _components(Path(models.detokenizer_run)):
        find_component(models.detokenizer_run, "detokenizer")  # refuses a folder without one
    found = set(_components(models.run)) | ({"detokenizer"} if detokenizer else set())
    if not found:
        raise UserError(
            f"{name} holds no tokenizer, de-tokenizer or video LLM, and no run that has them\n"
            "give a finished run, an exported or imported folder, or the folder of a quickstart or an ablation"
        )
    abilities = frozenset(ability for ability in only if NEEDS[ability] <= found)
    head = _head_name(models.run) if abilities & LANGUAGE else ""
    label = "" if detokenizer is None else Path(detokenizer).resolve().name
    return System(_folder_name(name), DivotPipeline(models), label, head, abilities, is_main)


def _folder_name(name: str) -> str:
    path = Path(name)
    return path.resolve().name if path.is_dir() else name


def _head_name(run: Path) -> str:
    """Return the short name of a run's head, or the name of its class if it has none."""
    file = find_component(run, "video_llm") / CONFIG_FILE
    try:
        path = str(read_object(file)["config"]["head"]["class_path"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} names no generation head; the folder holds no video LLM of this version") from error
    return next((part.name for part in HEADS.installed() if part.class_path == path), path.rpartition(".")[2])


def _with_different_names(systems: list[System]) -> list[System]:
    """Number the names that occur more than once."""
    counts = Counter(system.name for system in systems)
    seen: Counter[str] = Counter()
    named = []
    for system in systems:
        seen[system.name] += 1
        again = counts[system.name] > 1
        named.append(replace(system, name=f"{system.name} ({seen[system.name]})") if again else system)
    return named
