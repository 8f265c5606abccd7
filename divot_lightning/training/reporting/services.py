"""W&B and MLflow: `logger: wandb` in a recipe is enough, since a run adds the settings that the recipe leaves out.

The loggers are Lightning's. A run appears under the path of its folder. Its id at the service is written into
`config.yaml`, so that a resumed run continues there.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.loggers import Logger

from divot_lightning.errors import UserError, first_line
from divot_lightning.training.config_changes import flat_settings

MAX_NAME_CHARACTERS = 128
"""The longest name of a run that W&B takes; of a longer path, the end is kept."""


@dataclass(frozen=True)
class Service:
    """What the logger of a service needs.

    Attributes:
        package: The package that it imports.
        name: The argument of the logger for the name of the run.
        id: The argument for the id of the run at the service.
        help: What to do if the service cannot be used.
        defaults: Values for arguments that are None.
    """

    package: str
    name: str
    id: str
    help: str
    defaults: dict[str, Any] = field(default_factory=dict)


SERVICES = {
    # jsonargparse passes `resume: null` on, which is not Lightning's default: W&B would then overwrite the run
    "WandbLogger": Service("wandb", "name", "id", "`wandb login`, or set WANDB_MODE=offline", {"resume": "allow"}),
    # MLflow's own default; that of Lightning's logger, a folder, is refused by MLflow 3
    "MLFlowLogger": Service(
        "mlflow", "run_name", "run_id", "check --trainer.logger.tracking_uri", {"tracking_uri": "sqlite:///mlflow.db"}
    ),
}
"""By the name of Lightning's class."""


def require_packages(given: Any) -> None:
    """Check that the packages of the loggers are installed.

    Args:
        given: The setting `trainer.logger`, parsed.

    Raises:
        UserError: One is missing.
    """
    for service, _ in _services(given):
        if importlib.util.find_spec(service.package) is None:
            raise UserError(
                f"trainer.logger: the package {service.package} is not installed\npip install {service.package}"
            )


def complete_loggers(given: Any, run: str) -> None:
    """Fill in the name of the run, and what else the recipe leaves out.

    Args:
        given: The setting `trainer.logger`, parsed; changed in place.
        run: Path of the run folder.
    """
    for service, settings in _services(given):
        arguments = settings["init_args"]
        for argument, value in {service.name: run[-MAX_NAME_CHARACTERS:], **service.defaults}.items():
            if argument in arguments and arguments[argument] is None:
                arguments[argument] = value


def open_services(loggers: Sequence[Logger]) -> None:
    """Start the run at each service; a process that is not the first does nothing.

    Raises:
        UserError: A service cannot be used: nobody is logged in, or its server does not answer.
    """
    for logger in loggers:
        name = type(logger).__name__
        if name in SERVICES:
            try:
                logger.experiment  # type: ignore[attr-defined]  # noqa: B018 (builds it)
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error, None)}"
                raise UserError(f"{name} cannot start: {reason}\n{SERVICES[name].help}") from error


def log_settings(logger: Logger, settings: dict[str, Any]) -> None:
    """Send all settings of a run to a logger; MLflow keeps the values of the first start, since it refuses others."""
    if type(logger).__name__ == "MLFlowLogger":
        known = logger.experiment.get_run(logger.version).data.params  # type: ignore[attr-defined]
        settings = {key: str(value) for key, value in flat_settings(settings).items() if key not in known}
    logger.log_hyperparams(settings)


def record_ids(given: Any, loggers: Sequence[Logger]) -> bool:
    """Write the ids of the run at the services into the settings.

    Args:
        given: The setting `trainer.logger` as in `config.yaml`; changed in place.
        loggers: The loggers that were built from it, in the same order.

    Returns:
        Whether there are any.
    """
    services = list(_services(given))
    opened = [logger for logger in loggers if type(logger).__name__ in SERVICES]
    for (service, settings), logger in zip(services, opened, strict=True):
        settings["init_args"][service.id] = logger.version
    return bool(services)


def _services(given: Any) -> Iterator[tuple[Service, Any]]:
    for settings in given if isinstance(given, list) else [given]:
        if settings and not isinstance(settings, bool):
            name = settings["class_path"].rpartition(".")[2]
            if name in SERVICES:
                yield SERVICES[name], settings
