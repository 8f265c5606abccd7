"""Compare commands with work that no program could avoid: imports, decoding, passes of the models.

Run: python benchmarks/start.py ask|generate|fit RUN [VIDEO] [--repeats 5]

RUN is a run of LLM pretraining or instruction tuning; VIDEO is what `divot ask` is asked about. `divot fit` trains one
step of the recipe of RUN; what it does after its imports is not counted as unavoidable.

All times are processor time, since other programs may run beside. The command and the unavoidable work run in turn, in
new processes; the least of each counts. The unavoidable work imports torch, what the command needs of other libraries,
and what the parts of the quickstart's runs import. For `ask` it decodes the frames that the tokenizer reads, encodes
them, and generates the answer; for `generate` it generates a clip and writes it. Starting and ending Python is not in
it, and reading weights is not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = """
import torch, av, numpy, yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, CLIPVisionModel
"""
IMPORTS = {
    "ask": MODELS,
    "generate": MODELS + "from diffusers import DDIMScheduler\n",
    "fit": MODELS + "import lightning.pytorch, lightning.pytorch.cli, torch.utils.tensorboard\n",
}

QUESTION, PROMPT = "what shape is it ?", "a red circle moves left quickly."

WORK = {
    "ask": """
from divot_lightning import ClipFeatures, DivotPipeline
from divot_lightning.inference.media_input import as_tensor, read_video
pipeline = DivotPipeline.from_pretrained(run)
def work():
    pixels, kind = read_video(video, pipeline.models.clip)
    pipeline.ask(ClipFeatures(pipeline.models.encode(as_tensor(pixels)), (kind,) * len(pixels)), question)
""",
    "generate": """
import tempfile
from divot_lightning import DivotPipeline
pipeline = DivotPipeline.from_pretrained(run)
folder = tempfile.TemporaryDirectory()
def work():
    pipeline.generate(prompt).save(folder.name + "/clip.mp4")
""",
    "fit": "def work(): pass",
}

UNAVOIDABLE = """
import sys, time
start = time.process_time()
{imports}
imports = time.process_time() - start
run, video, question, prompt = sys.argv[1:]
{work}
work()  # everything is loaded and warm
start = time.process_time()
work()
print(imports, time.process_time() - start)
"""


def main() -> None:
    """Print the parts, the time of the command, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=IMPORTS)
    parser.add_argument("run")
    parser.add_argument("video", nargs="?", default="")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    code = UNAVOIDABLE.format(imports=IMPORTS[given.command], work=WORK[given.command])
    whole, parts = [], []
    for _ in range(given.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            whole.append(timed(["-m", "divot_lightning", *words(given.command, given.run, given.video, folder)])[0])
        _, printed = timed(["-c", code, given.run, given.video, QUESTION, PROMPT])
        parts.append([float(word) for word in printed.split()])
    # The first processes may compile modules, and read files from the disk.
    imports, work = (min(values) for values in zip(*parts[1:], strict=True))
    figures = {f"divot {given.command}": min(whole[1:]), "imports": imports, "work": work}
    figures["ratio"] = min(whole[1:]) / (imports + work)
    sys.stdout.write(json.dumps({"date": time.strftime("%Y-%m-%d"), **figures}, indent=1) + "\n")


def words(command: str, run: str, video: str, folder: str) -> list[str]:
    """Return the words after `divot`; what the command writes goes into the folder."""
    if command == "ask":
        return ["ask", run, video, "--question", QUESTION]
    if command == "generate":
        return ["generate", run, "--prompt", PROMPT, "--output", f"{folder}/clip.mp4"]
    one_step = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    return ["fit", "--config", str(Path(run) / "config.yaml"), *one_step, "--run", f"{folder}/run"]


def timed(arguments: list[str]) -> tuple[float, str]:
    """Run Python; return the processor time of the process, and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without compiled files every start compiles our modules
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], check=True, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


if __name__ == "__main__":
    main()
