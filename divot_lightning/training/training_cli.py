"""The training command line: recipe and command line in, trainer with its run folder out."""

import contextlib
import itertools
import logging
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, Namespace, set_loader, set_parsing_settings
from jsonargparse._loaders_dumpers import loader_exceptions, loaders
from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from divot_lightning import __version__
from divot_lightning.checkpoint.rng_state import RandomStates
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig, StepCheckpoint
from divot_lightning.deepspeed_zero.registration import STRATEGIES, register_strategies
from divot_lightning.distributed.environment import is_first_process
from divot_lightning.distributed.launcher import watch_processes
from divot_lightning.distributed.same_start import SameStart
from divot_lightning.distributed.signals import NoSignalHandlers, StopOnSignal, StopSignals
from divot_lightning.errors import UserError, first_line
from divot_lightning.parts.registries.recipe_parts import expand_recipe, expand_words, read_recipe
from divot_lightning.training.export import ComponentExport
from divot_lightning.training.messages import condense
from divot_lightning.training.reporting.run_callbacks import RunOpening, StepProgress
from divot_lightning.training.reporting.run_logging import CsvMetrics, TensorBoardMetrics
from divot_lightning.training.reporting.services import complete_loggers, require_packages
from divot_lightning.training.reporting.speed import DataWait, TrainingSpeed
from divot_lightning.training.run_folder import STOPPED, forget_skipped, require_free
from divot_lightning.training.run_lock import run_lock

# Lightning's CLI lets a value that is a URL be read as settings; ours are shards, to be opened by the data alone.
set_parsing_settings(config_read_mode_fsspec_enabled=False)

RECIPE_MODE = "recipe"
"""jsonargparse's name for how recipes are read: as YAML, with class paths in place of the short names of parts."""


def parse_settings(text: str) -> Any:
    """Parse a recipe, or one value of a command line, with class paths in place of short names."""
    return expand_recipe(loaders["yaml"](text))


set_loader(RECIPE_MODE, parse_settings, exceptions=loader_exceptions["yaml"])

DEFAULT_SEED = 0

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
"""A run is limited by steps, not by epochs: training streams have no end."""


class TrainingCLI(LightningCLI):
    """LightningCLI with a run folder: `--run`, `--checkpoint.every_steps`, short messages, our loggers and callbacks.

    Args:
        argv: Options as on the command line, `--config` with paths of existing files.
        command: What stands in usage lines, such as `divot fit`.
        mode: "start" needs a folder that holds nothing yet; "measure" writes nothing into it.
        held: Holds the lock of the run folder, if given.

    Attributes:
        stop_signals: The stop signals that this process received.
        stop_on_signal: The callback that ends training after one.
        checkpoint: The callback that saves the run, and loads the checkpoint that it is given in `resume_from`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        command: str,
        mode: Literal["start", "resume", "measure"],
        held: contextlib.ExitStack | None = None,
    ) -> None:
        self.mode = mode
        self.held = held
        self.stop_signals = StopSignals()
        quiet()
        register_strategies()
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=DEFAULT_SEED,
            parser_kwargs={"prog": command, "exit_on_error": False, "allow_abbrev": False, "parser_mode": RECIPE_MODE},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(argv),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of the run folder."""
        take_files_by_name(parser)
        parser.add_argument("--run", type=str, required=True, help="Folder for everything this run writes.")
        parser.add_class_arguments(CheckpointConfig, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; an error of the parser becomes a `UserError` of a few lines.

        Parts are resolved first: the registry's message about an unknown part lists the installed ones.
        """
        args = expand_words(args)
        for option, value in itertools.pairwise(args):
            if option == "--config":
                expand_recipe(read_recipe(Path(value)))
        argv0, sys.argv = sys.argv, sys.argv[:1]
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(condense(str(error), parser)) from error
        finally:
            sys.argv = argv0
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise UserError(f"seed_everything is {seed}; give 0 to {2**32 - 1}")

    def before_instantiate_classes(self) -> None:
        """Refuse an occupied folder before anything expensive is built, and complete the loggers."""
        self._prepare_loggers(self.config.trainer)
        if self.mode == "start" and is_first_process():
            if self.held:
                self.held.enter_context(run_lock(self.run_folder))
            require_free(self.run_folder)
            forget_skipped(self.run_folder)

    def instantiate_classes(self) -> None:
        """Build stage, data and trainer; a `UserError` of theirs is raised unchanged."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse tries each type of a Union and wraps what the class itself said
            raise _innermost_user_error(error) or _cause_in_union(error) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the loggers and callbacks of a run, besides those of the recipe.

        Raises:
            UserError: Lightning refuses the settings.
        """
        settings = {**self.config_init.trainer, "default_root_dir": str(self.run_folder), **kwargs}
        given = settings["callbacks"] or []
        settings["callbacks"] = [*(given if isinstance(given, list) else [given]), *self._run_callbacks(settings)]
        settings["logger"] = self._run_loggers(settings["logger"])
        settings["enable_checkpointing"] = True
        settings["profiler"] = settings["profiler"] or DataWait()
        try:
            trainer = Trainer(**settings)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(_trainer_refusal(str(error), settings)) from error
        watch_processes(trainer)
        trainer._signal_connector = NoSignalHandlers()  # type: ignore[assignment]
        return trainer

    @property
    def run_folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    @cached_property
    def saved_config(self) -> str:
        """The text of `<run>/config.yaml`: every setting as resolved."""
        command = shlex.join(["divot", "resume", str(self.run_folder)])
        # parsing has validated it
        body = self.parser.dump(self.config, skip_unset=False, skip_validation=True, format="yaml")
        return f"# written by divot-lightning {__version__}; continue with: {command}\n{body}"

    def _run_callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        run = self.run_folder
        self.checkpoint = saving = StepCheckpoint(run, self.config_init.checkpoint)
        if self.mode == "measure":
            return [saving]
        self.stop_on_signal = StopOnSignal(self.stop_signals, saving.save, run / STOPPED)
        self.same_start = SameStart()
        callbacks: list[Callback] = [
            self.same_start,
            RunOpening(run, self.saved_config),
            RandomStates(),
            saving,
            self.stop_on_signal,
            ComponentExport(run),
            TrainingSpeed(),
        ]
        if settings["enable_progress_bar"] is not False:
            callbacks.append(StepProgress(run.name))
        return callbacks

    def _prepare_loggers(self, trainer: Namespace) -> None:
        if self.mode == "measure":
            trainer.logger = False  # their packages need not be here, and their services must see no other run
            return
        require_packages(trainer.logger)
        complete_loggers(trainer.logger, self.config.run)
        _ = self.saved_config  # must be the same in all processes
        if trainer.logger is not False and not is_first_process():
            trainer.logger = None  # two processes that create the database of MLflow at the same time destroy it

    def _run_loggers(self, given: Any) -> Any:
        if given is False:
            return False
        own = [CsvMetrics(self.run_folder), TensorBoardMetrics(self.run_folder)]
        others = [] if given in (None, True) else given if isinstance(given, list) else [given]
        return [*own, *others]


def take_files_by_name(parser: LightningArgumentParser) -> None:
    """Keep a value that is the name of a file as it is: shards and weights are files.

    jsonargparse would read every such file as text, to see whether it holds settings: a tar of 3 GB took 7 GB of memory
    and 84 s, and an empty list of samples became "nothing". It has no setting for that where subclasses are chosen.
    """
    for action in parser._actions:
        if isinstance(action, ActionTypeHint):
            action._enable_path = False
            action.sub_add_kwargs = {**action.sub_add_kwargs, "sub_configs": False}


class SettingsOnly(TrainingCLI):
    """Parses recipe and command line like a training command and builds nothing."""

    def before_instantiate_classes(self) -> None:
        """Check the packages of loggers, and nothing else."""
        require_packages(self.config.trainer.logger)

    def instantiate_classes(self) -> None:
        """Build nothing."""


def quiet() -> None:
    """Silence messages of no use here: Lightning's device lines and tips, and advice for other ways of working."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*you defined a `validation_step` but have no `val_dataloader`.*",
        ".*dataloader is not resumable.*",
        r".*Total length of `list` across ranks is zero.*",  # no validation data
        r".*module\(s\) in eval mode at the start of training.*",
        ".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from.*",
        ".*instantiate_classes.*",
        r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # stages log means over all processes
        ".*only one JsonargparseDeprecationWarning.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*did not contain values for support_fp32.*",
        ".*torch.distributed.* is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _trainer_refusal(message: str, settings: Mapping[str, Any]) -> str:
    if "invalid strategy name" in message:  # Lightning's own list lacks ours
        return f"trainer.strategy is {settings['strategy']!r}; choose auto, ddp or one of: {', '.join(STRATEGIES)}"
    return f"the trainer cannot be set up like this: {message}{_gpu_hint(settings)}"


def _gpu_hint(settings: Mapping[str, Any]) -> str:
    if settings["accelerator"] not in ("gpu", "cuda") or torch.cuda.is_available():
        return ""
    return f"\ntorch {torch.__version__} finds no GPU here; without one: --trainer.accelerator cpu"


def _cause_in_union(error: ValueError) -> BaseException:
    """Return what a class raised when it was built, in place of jsonargparse's list of all types of a Union."""
    cause, text = error.__cause__, str(error)
    if cause is None or "Union subtypes" not in text:
        return error
    if "loggers.logger.Logger" in text:
        return UserError(f"trainer.logger cannot be built: {type(cause).__name__}: {first_line(cause, None)}")
    return cause


def _innermost_user_error(error: BaseException | None) -> UserError | None:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
