"""Find parts through entry points: one registry per kind of part, for built-in parts and plug-ins alike.

A distribution declares a part under the entry-point group `divot_lightning.<kind>`. To list parts only metadata is
read; nothing is imported. Installed parts are found automatically but never used unless a recipe names them.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from divot_lightning.errors import UserError, did_you_mean, first_line, module_hint
from divot_lightning.io.renamed import explain_import_error

T = TypeVar("T")


@dataclass(frozen=True)
class InstalledPart:
    """One entry point, as its distribution declares it; the part itself is not imported.

    Attributes:
        name: Short name, such as `gmm`.
        class_path: Dotted path of the class, such as `divot_heads.gmm.GMMHead`.
        distribution: Name of the distribution that declares it.
        version: Version of that distribution.
        entry_point: The entry point.
    """

    name: str
    class_path: str
    distribution: str
    version: str
    entry_point: EntryPoint


@dataclass(frozen=True)
class LoadedPart(Generic[T]):
    """An installed part with its class, or with the reason why the class cannot be used.

    Attributes:
        installed: The declared part.
        part_class: The class; None for a broken part.
        problem: Why the part cannot be used; empty if it can be used.
    """

    installed: InstalledPart
    part_class: type[T] | None
    problem: str = ""


@dataclass(frozen=True)
class Registry(Generic[T]):
    """All installed parts of one kind.

    Attributes:
        kind: Name of the kind in the plural, such as `heads`; it is in the name of the entry-point group.
        noun: Name of one part in messages: `head`.
        key: Key of a recipe that holds such a part: `head`.
        base: Dotted path of the base class of this kind; it is imported only when a part is.
    """

    kind: str
    noun: str
    key: str
    base: str

    @property
    def group(self) -> str:
        """Return the name of the entry-point group."""
        return f"divot_lightning.{self.kind}"

    def installed(self) -> list[InstalledPart]:
        """List the declared parts, sorted by name; a name that two distributions declare is listed twice."""
        return list(_declared(self.group, _state_of_path()))

    def load(self, name: str) -> type[T]:
        """Import one part by its short name.

        Args:
            name: Short name, such as "gmm".

        Raises:
            UserError: The name is not installed, is declared twice, cannot be imported or is not a part of this kind.
        """
        matches = [part for part in self.installed() if part.name == name]
        if not matches:
            raise UserError(self._unknown(name))
        if len(matches) > 1:
            owners = " and ".join(f"{part.distribution} {part.version}" for part in matches)
            raise UserError(
                f"{self.noun} {name!r} is declared by two distributions: {owners}\n"
                f"Uninstall one of them, or choose by class path: {', '.join(part.class_path for part in matches)}"
            )
        return self._import_installed(matches[0])

    def load_every(self) -> list[LoadedPart[T]]:
        """Load each installed part on its own; a broken part is returned with the reason."""
        results: list[LoadedPart[T]] = []
        for part in self.installed():
            try:
                results.append(LoadedPart(part, self.load(part.name)))
            except UserError as error:
                results.append(LoadedPart(part, None, str(error)))
        return results

    def resolve(self, name: str) -> str:
        """Return the class path of a part that a user names.

        Args:
            name: A short name (`gmm`), a class name (`GMMHead`) or a class path (`divot_heads.gmm.GMMHead`).

        Raises:
            UserError: No usable part has that name; the message lists the installed parts.
        """
        if "." in name:
            return class_path(self.import_class(name))
        installed = self.installed()
        if any(part.name == name for part in installed):
            return class_path(self.load(name))
        by_class = {part.class_path: part for part in installed if part.class_path.rpartition(".")[2] == name}
        if len(by_class) > 1:
            listed = ", ".join(by_class)
            raise UserError(f"{self.noun} {name!r} is the class name of several parts; give one in full: {listed}")
        if not by_class:
            raise UserError(self._unknown(name))
        return class_path(self._import_installed(next(iter(by_class.values()))))

    def import_class(self, path: str) -> type[T]:
        """Import a part by its class path, installed or not.

        Args:
            path: Class path, such as "divot_heads.gmm.GMMHead".

        Raises:
            UserError: The path cannot be imported or is not a part of this kind.
        """
        module, _, attribute = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            hint = module_hint(_reason(error))
            raise UserError(f"{self.noun} {path!r} cannot be imported: {_reason(error)}{hint}") from error
        return self._check(found, path)

    def build(self, path: str, init_args: dict[str, Any], **supplied: Any) -> T:
        """Build a part from its class path and settings, as a component folder or a recipe records them.

        Args:
            path: Dotted path of the class, or a short name.
            init_args: Settings of the part.
            **supplied: The arguments that the suite supplies, by name.

        Raises:
            UserError: The class cannot be found or does not take these settings.
        """
        part_class = self.import_class(self.resolve(path))
        allowed = list(inspect.signature(part_class.__init__).parameters.values())[1:]
        names = [parameter.name for parameter in allowed if parameter.name not in supplied]
        unknown = [name for name in init_args if name not in names]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in allowed):
            raise UserError(
                f"{self.noun} {path!r} takes no setting {', '.join(unknown)}; it takes: {', '.join(names) or 'none'}"
            )
        return part_class(**supplied, **init_args)

    def _import_installed(self, part: InstalledPart) -> type[T]:
        try:
            found = part.entry_point.load()
        except Exception as error:
            raise UserError(
                f"{self.noun} {part.name!r} of distribution {part.distribution} {part.version} cannot be imported "
                f"from {part.class_path}: {_reason(error)}\n"
                f"Fix or uninstall {part.distribution}; all other parts work without it."
            ) from error
        return self._check(found, part.class_path)

    def _check(self, found: Any, path: str) -> type[T]:
        module, _, name = self.base.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UserError(f"{path} is no {self.noun}: {found!r:.80}\nEvery {self.noun} is a subclass of {self.base}.")
        self._require_complete(found, path)
        return found

    def _require_complete(self, part_class: type[T], path: str) -> None:
        undefined = sorted(getattr(part_class, "__abstractmethods__", ()))
        if undefined:
            raise UserError(
                f"{path} does not define {' and '.join(undefined)}, as every {self.noun} must\n"
                f"{self.base} says what it takes and returns."
            )
        parameters = inspect.signature(part_class.__init__).parameters
        supplied = () if _takes_all(parameters) else getattr(part_class, "supplied_args", ())
        refused = [name for name in supplied if name not in parameters]
        if refused:
            raise UserError(
                f"{path}.__init__ does not take {', '.join(refused)}, which the suite supplies to every {self.noun}\n"
                f"Add {'it' if len(refused) == 1 else 'them'} to the arguments of its __init__."
            )

    def _unknown(self, name: str) -> str:
        names = sorted({part.name for part in self.installed()})
        if not names:
            return f"no {self.noun} is installed, so {name!r} is not there; run `pip install -e .` in the checkout"
        return f"{self.noun} {name!r} is not installed; installed: {', '.join(names)}.{did_you_mean(name, names)}"


def class_path(part_class: type) -> str:
    """Return the dotted path under which a part's class is recorded."""
    return f"{part_class.__module__}.{part_class.__qualname__}"


def _takes_all(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def _reason(error: Exception) -> str:
    renamed = explain_import_error(str(error)) if isinstance(error, ImportError) else ""
    return f"{type(error).__name__}: {renamed or first_line(error, None)}"


@lru_cache(maxsize=64)
def _declared(group: str, state_of_path: tuple[tuple[str, int], ...]) -> tuple[InstalledPart, ...]:
    parts = []
    for entry in _entry_points(state_of_path).select(group=group):
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "unknown")
        parts.append(InstalledPart(entry.name, entry.value.replace(":", "."), name, version, entry))
    return tuple(sorted(parts, key=lambda part: (part.name, part.distribution)))


@lru_cache(maxsize=4)
def _entry_points(state_of_path: tuple[tuple[str, int], ...]) -> Any:
    """Read all entry points; kept, since that opens a file of each of the hundreds of distributions.

    They have a method `select`; their class is another one in Python 3.11 than later.
    """
    return entry_points()


def _state_of_path() -> tuple[tuple[str, int], ...]:
    """Return each folder of the import path with the time of its last change, which an installation makes."""
    folders = [(name, Path(name)) for name in sys.path]
    return tuple((name, folder.stat().st_mtime_ns if folder.exists() else 0) for name, folder in folders)
