"""The house rule: imports point downwards, as CONTRIBUTING.md draws it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import divot_lightning

ROOT = Path(__file__).parents[2]

PLUGINS = ("divot_heads", "divot_backbones", "divot_optimizers")
FLOORS = (
    ("errors",),
    ("io",),
    ("parts",),
    ("models", "distributed"),
    ("checkpoint",),
    ("data", *PLUGINS),
    ("deepspeed_zero",),
    ("training",),
    ("inference", "preflight", "interop"),
    ("evaluation",),
    ("experiments", "demo"),
    ("cli",),
    ("testing", "__main__"),
)
"""Rooms of the house from the ground up; a room imports from rooms below it, and from itself."""

OURS = rf"(divot_lightning|divot_datamodules|{'|'.join(PLUGINS)})(\.\w+)+"
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
PLAIN_TORCH = ("parts", "models")
"""Rooms without Lightning, DeepSpeed and communication."""
MAX_FILES = 16


def source_files() -> list[tuple[str, Path]]:
    """List the modules of the project's packages by dotted name."""
    plugins = {name: ROOT / "plugins" for name in PLUGINS}
    roots = {"divot_lightning": ROOT, "divot_datamodules": ROOT / "datamodules", **plugins}
    return [
        (".".join(path.relative_to(root).with_suffix("").parts), path)
        for package, root in roots.items()
        for path in sorted((root / package).rglob("*.py"))
    ]


def room_of(module: str) -> str:
    """Return the room of a module: the folder below divot_lightning, or the other package.

    A public name, as in `from divot_lightning import VideoLLM`, stands for the module that defines it.
    """
    package, *rest = module.split(".")
    if package == "divot_datamodules":
        return "data"
    if package in PLUGINS:
        return package
    if rest and rest[0] in divot_lightning._MODULE_OF:
        return divot_lightning._MODULE_OF[rest[0]].split(".")[0]
    return rest[0] if rest else ""


def imported(module: str, path: Path) -> Iterator[str]:
    """Yield what a file imports, also within functions and for types alone, and the modules that it names in strings.

    A string can start a module, as in `python -m`. In `io` strings are class paths of old files, not imports.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names if source in ("torch", "divot_lightning"))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and room_of(module) != "io" and re.fullmatch(OURS, str(node.value)):
            yield str(node.value)


FILES = source_files()


def upward_imports(files: list[tuple[str, Path]]) -> list[str]:
    """List the imports that point upwards, or sideways into another room of the same floor."""
    found = []
    for module, path in files:
        room = room_of(module)
        for name in imported(module, path):
            target = room_of(name)
            ours = re.fullmatch(OURS, name)
            if ours and target != room and room != "__init__" and LEVEL.get(target, -1) >= LEVEL[room]:
                found.append(f"{module} imports {name}")
    return found


def test_no_module_imports_from_a_room_above_or_beside_its_own():
    assert upward_imports(FILES) == []


def test_parts_and_models_know_no_trainer_and_no_communication():
    plain = [(module, path) for module, path in FILES if room_of(module) in PLAIN_TORCH]
    banned = ("lightning", "deepspeed", "torch.distributed")
    assert len(plain) > 50
    assert [
        (module, name) for module, path in plain for name in imported(module, path) if name.startswith(banned)
    ] == []
    assert [module for module, path in plain if "torch.distributed" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("    from divot_lightning.training import runs", "divot_lightning.training"),
        ("    import divot_lightning.training.runs", "divot_lightning.training.runs"),
        ("    from divot_lightning import training", "divot_lightning.training"),
        ("    from divot_lightning import DivotPipeline", "divot_lightning.DivotPipeline"),
        ("    from .. import training", "divot_lightning.training"),
        ("    from ..training import runs", "divot_lightning.training"),
        ("    from divot_datamodules.video_text import VideoTextData", "divot_datamodules.video_text"),
        ("    run('-m', 'divot_lightning.experiments.measure')", "divot_lightning.experiments.measure"),
    ],
)
def test_an_upward_import_is_found(tmp_path, line, target):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(f"def load():\n{line}\n", encoding="utf-8")
    assert upward_imports([("divot_lightning.models.wrong", wrong)]) == [
        f"divot_lightning.models.wrong imports {target}"
    ]


def test_the_version_and_rooms_below_may_be_imported(tmp_path):
    right = tmp_path / "right.py"
    right.write_text(
        "from divot_lightning import GenerationHead, __version__\nfrom ..io import files\n", encoding="utf-8"
    )
    assert upward_imports([("divot_lightning.models.right", right)]) == []


def test_every_room_stands_on_a_floor():
    assert {room_of(module) for module, _ in FILES} <= {*LEVEL, "__init__"}


@pytest.mark.parametrize("folder", sorted({path.parent for _, path in FILES}), ids=lambda path: path.name)
def test_no_folder_is_crowded(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_FILES
