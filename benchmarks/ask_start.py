"""Compare `divot ask` about one video with work that no program could avoid: imports, decoding, passes of the models.

Run: python benchmarks/ask_start.py RUN VIDEO [--repeats 5]

All times are processor time, since other programs may run beside. `divot ask` and the unavoidable work run in turn, in
new processes; the least of each counts. The unavoidable work imports torch, transformers' language model and text
tokenizer, av, and what the run's parts import, decodes the frames that the tokenizer reads, encodes them, and generates
the answer; reading weights from files is not in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

QUESTION = "what shape is it ?"

UNAVOIDABLE = """
import sys, time
start = time.process_time()
import torch, av, numpy, yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, DynamicCache, TopPLogitsWarper
from diffusers.models.embeddings import get_timestep_embedding
imports = time.process_time() - start
from divot_lightning import ClipFeatures, DivotPipeline
from divot_lightning.inference.media_input import as_tensor, read_video
run, video, question = sys.argv[1:]
pipeline = DivotPipeline.from_pretrained(run)
pipeline.ask(video, question)  # everything is loaded and warm
start = time.process_time()
pixels, kind = read_video(video, pipeline.models.clip)
decoding = time.process_time() - start
start = time.process_time()
pipeline.ask(ClipFeatures(pipeline.models.encode(as_tensor(pixels)), (kind,) * len(pixels)), question)
passes = time.process_time() - start
print(imports, decoding, passes)
"""


def main() -> None:
    """Print the parts, the time of the command, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("video")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ask = ["-m", "divot_lightning", "ask", given.run, given.video, "--question", QUESTION]
    whole, parts = [], []
    for _ in range(given.repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *ask], check=True, env=environment, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        whole.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        words = [sys.executable, "-c", UNAVOIDABLE, given.run, given.video, QUESTION]
        done = subprocess.run(words, check=True, env=environment, capture_output=True, text=True)
        parts.append([float(word) for word in done.stdout.split()])
    imports, decoding, passes = (min(values) for values in zip(*parts, strict=True))
    figures = {"divot ask": min(whole), "imports": imports, "decoding": decoding, "passes": passes}
    figures["ratio"] = min(whole) / (imports + decoding + passes)
    sys.stdout.write(json.dumps({"date": time.strftime("%Y-%m-%d"), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
