"""What the server of `run_distributed` does when it starts, so that no process that is forked from it has to.

Importing this module takes seconds, and DeepSpeed does the rest of its work on first use: its first engine imports
torch's compiler, and its first look at the kernels that could be built asks the compiler of the machine about each.
"""

import gc
import importlib.util

import divot_lightning.training.stages.video_llm_stage
import divot_lightning.training.training_cli  # noqa: F401

if importlib.util.find_spec("deepspeed") is not None:
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":  # elsewhere the look starts CUDA, which no forked process could use
        deepspeed.ops.__compatible_ops__  # noqa: B018

gc.collect()
gc.freeze()  # a collection in a forked process would copy the memory of all objects that it looks at
