"""A modular training suite for Divot: a diffusion-powered video tokenizer and the video LLM on top of it.

Public classes can be imported from here: `from divot_lightning import VideoTokenizer`. Each is loaded when it is asked
for, so that `import divot_lightning` itself is quick and imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from divot_lightning.distributed.parent import bind_to_named_parent

if TYPE_CHECKING:
    from divot_lightning.checkpoint.components import load_component, save_component
    from divot_lightning.checkpoint.run_components import find_component
    from divot_lightning.inference.clip_requests import ClipOpening, ClipRequest
    from divot_lightning.inference.loaded_run import LoadedRun, load_run
    from divot_lightning.inference.pipeline import DivotPipeline
    from divot_lightning.inference.pipeline_options import Decoding
    from divot_lightning.inference.results import Answer, ClipFeatures, GeneratedClips, Reconstruction, Story, StoryPart
    from divot_lightning.models.detokenizer.config import DetokenizerConfig
    from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
    from divot_lightning.models.tokenizer.config import TokenizerConfig
    from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
    from divot_lightning.models.video_llm.config import VideoLLMConfig
    from divot_lightning.models.video_llm.model import VideoLLM
    from divot_lightning.models.video_llm.story import StorySampling
    from divot_lightning.parts.heads import GenerationHead

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ClipFeatures",
    "ClipOpening",
    "ClipRequest",
    "Decoding",
    "DetokenizerConfig",
    "DivotPipeline",
    "GeneratedClips",
    "GenerationHead",
    "LoadedRun",
    "Reconstruction",
    "Story",
    "StoryPart",
    "StorySampling",
    "TokenizerConfig",
    "VideoDetokenizer",
    "VideoLLM",
    "VideoLLMConfig",
    "VideoTokenizer",
    "find_component",
    "load_component",
    "load_run",
    "save_component",
]

_MODULES = {
    "checkpoint.components": ("load_component", "save_component"),
    "checkpoint.run_components": ("find_component",),
    "inference.clip_requests": ("ClipOpening", "ClipRequest"),
    "inference.loaded_run": ("LoadedRun", "load_run"),
    "inference.pipeline": ("DivotPipeline",),
    "inference.pipeline_options": ("Decoding",),
    "inference.results": ("Answer", "ClipFeatures", "GeneratedClips", "Reconstruction", "Story", "StoryPart"),
    "models.detokenizer.config": ("DetokenizerConfig",),
    "models.detokenizer.video_detokenizer": ("VideoDetokenizer",),
    "models.tokenizer.config": ("TokenizerConfig",),
    "models.tokenizer.video_tokenizer": ("VideoTokenizer",),
    "models.video_llm.config": ("VideoLLMConfig",),
    "models.video_llm.model": ("VideoLLM",),
    "models.video_llm.story": ("StorySampling",),
    "parts.heads": ("GenerationHead",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

bind_to_named_parent()  # does nothing but in a process that another one of ours started


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # asked for only once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
