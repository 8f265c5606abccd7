"""Progress and cancelling, through the forward hooks of the models: the pipeline itself knows nothing of pages."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from divot_lightning.demo.jobs import Job
from divot_lightning.inference.loaded_run import LoadedRun

Watch = Callable[[nn.Module, Any], None]
"""A forward pre-hook that changes nothing."""


@contextmanager
def watched(
    job: Job, name: str, models: LoadedRun, *, reads: bool = False, writes: bool = False, steps: int = 0
) -> Iterator[None]:
    """Load the models of a run, and report every call of them to a job, which can be cancelled there.

    Args:
        job: The job.
        name: Name of the run, for the page.
        models: The run.
        reads: Whether the tokenizer is used.
        writes: Whether the video LLM is used.
        steps: Calls of the denoiser in the whole block; 0 if the de-tokenizer is not used.
    """
    job.tell(f"{name}: loading the models")
    with ExitStack() as hooks:

        def watch(module: nn.Module, report: Watch) -> None:
            hooks.callback(module.register_forward_pre_hook(report).remove)

        if reads:
            watch(models.tokenizer, lambda module, given: job.tell(f"{name}: the tokenizer reads the clip"))
        if writes:
            _watch_video_llm(job, name, models, watch)
        if steps:
            watch(models.detokenizer.denoiser, _Counted(job, f"{name}: the de-tokenizer decodes", steps))
        job.tell(name)
        yield


def _watch_video_llm(job: Job, name: str, models: LoadedRun, watch: Callable[[nn.Module, Watch], None]) -> None:
    watch(models.video_llm.causal_lm.base_model, lambda module, given: job.tell(f"{name}: the language model works"))
    # A head need not be called as a module: its `sample` may call the networks in it.
    for module in models.video_llm.head.modules():
        watch(module, lambda module, given: job.tell(f"{name}: the head samples features"))


class _Counted:
    """Reports the calls of a module as steps of a known number."""

    def __init__(self, job: Job, stage: str, total: int) -> None:
        self.job, self.stage, self.total, self.count = job, stage, total, 0

    def __call__(self, module: nn.Module, given: Any) -> None:
        self.job.tell(f"{self.stage}, step {self.count + 1} of {self.total}", min(1.0, self.count / self.total))
        self.count += 1
