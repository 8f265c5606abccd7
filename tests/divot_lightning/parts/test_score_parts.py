"""Benchmarks, metrics and optimizers of strangers are found, and refused, as heads are."""

import subprocess
import sys

import pytest

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.parts.registries.kinds import REGISTRIES

KINDS = {"benchmarks": "toy", "metrics": "psnr", "optimizers": "muon"}

SOURCES = {
    "benchmarks": """
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData

class Mine(Benchmark):
    '''No item at all.'''

    metrics = ("captions",)

    def items(self, data, split):
        return BenchmarkData((), {})
""",
    "metrics": """
from divot_lightning.parts.metrics import ItemMetric

class Mine(ItemMetric):
    '''Number of words.'''

    inputs, scores = "answers", ("words",)

    def measure(self, prediction, item):
        return {"words": len(prediction.answer.split())}
""",
    "optimizers": """
from divot_optimizers.adamw import AdamWOptimizer

class Mine(AdamWOptimizer):
    '''AdamW under another name.'''
""",
}


@pytest.fixture
def add(request):
    return request.getfixturevalue("install")


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_part_is_found_by_name(add, kind):
    add("stranger", f"mine = stranger_{kind}:Mine", SOURCES[kind], kind=kind)
    built = REGISTRIES[kind].build("mine", {})
    assert type(built).__module__ == f"stranger_{kind}"
    assert "mine" in {part.name for part in REGISTRIES[kind].installed()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_part_disturbs_no_other(add, kind):
    add("faulty", f"faulty = faulty_{kind}:Mine", "raise RuntimeError('no driver')", kind=kind)
    loaded = {part.installed.name: part for part in REGISTRIES[kind].load_every()}
    assert "faulty 1.0 cannot be imported from" in loaded["faulty"].problem
    assert "RuntimeError: no driver" in loaded["faulty"].problem
    assert loaded[KINDS[kind]].part_class is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_two_distributions_declare_is_refused_with_both(add, kind):
    add("impostor", f"{KINDS[kind]} = impostor_{kind}:Mine", SOURCES[kind], kind=kind)
    with pytest.raises(UserError, match=rf"'{KINDS[kind]}' is declared by two distributions: .*impostor 1\.0"):
        REGISTRIES[kind].build(KINDS[kind], {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_another_kind_is_refused(add, kind):
    add("wrong", f"wrong = wrong_{kind}:Mine", "class Mine: pass", kind=kind)
    with pytest.raises(UserError, match=r"Every \w+ is a subclass of divot_lightning\.parts\."):
        REGISTRIES[kind].load("wrong")


def test_divot_evaluate_lists_a_strangers_benchmark_and_refuses_a_doubled_one(add, tmp_path, capsys):
    add("stranger", "mine = stranger_mine:Mine", SOURCES["benchmarks"], kind="benchmarks")
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "mine" in capsys.readouterr().out.partition("Installed benchmarks:")[2].partition(".")[0]
    add("other", "mine = other_mine:Mine", SOURCES["benchmarks"], kind="benchmarks")
    assert main(["evaluate", str(tmp_path), "--benchmark", "mine", "--data", "."]) == 2
    assert "'mine' is declared by two distributions: other 1.0 and stranger 1.0" in capsys.readouterr().err


def test_listing_benchmarks_and_metrics_imports_no_torch():
    code = (
        "import sys; from divot_lightning.parts.registries.kinds import BENCHMARKS, METRICS, OPTIMIZERS\n"
        "assert len([p for kind in (BENCHMARKS, METRICS, OPTIMIZERS) for p in kind.installed()]) > 20\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
