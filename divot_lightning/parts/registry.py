"""Finds generation heads through the entry-point group `divot_lightning.heads`, ours by the same door as anyone's.

Listing reads metadata and imports nothing. Discovery is automatic, activation never is: only a recipe chooses.
"""

import difflib
import importlib
import inspect
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError

if TYPE_CHECKING:
    from divot_lightning.parts.heads import GenerationHead

GROUP = "divot_lightning.heads"
_ALIAS_MODULE = "divot_lightning.parts.head_names"


@dataclass(frozen=True)
class InstalledHead:
    """One entry point, as its distribution declares it; nothing is imported to know this."""

    name: str
    """Short name, as in `--model.head gmm`."""
    class_path: str
    """Dotted path of the class, such as `divot_heads.gmm.GMMHead`."""
    distribution: str
    """Name of the distribution that declares it."""
    version: str
    """Version of that distribution."""
    entry_point: EntryPoint
    """The declaration itself."""


@dataclass(frozen=True)
class LoadedHead:
    """What came of loading one installed head: its class, or the reason why there is none."""

    installed: InstalledHead
    head_class: "type[GenerationHead] | None"
    problem: str = ""
    """Why it cannot be used, empty if it can."""


def installed_heads() -> list[InstalledHead]:
    """List the declared heads in order of name; a name that two distributions declare is listed twice."""
    heads = []
    for entry in entry_points(group=GROUP):
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"
        heads.append(InstalledHead(entry.name, entry.value.replace(":", "."), distribution, version, entry))
    return sorted(heads, key=lambda head: (head.name, head.distribution))


def load_head(name: str) -> "type[GenerationHead]":
    """Import one head by its entry-point name.

    Args:
        name: Such as "gmm".

    Returns:
        Its class.

    Raises:
        UserError: The name is not installed, is declared twice, does not import or is not a GenerationHead.
    """
    matches = [head for head in installed_heads() if head.name == name]
    if not matches:
        raise UserError(_unknown_head(name))
    if len(matches) > 1:
        owners = " and ".join(f"{head.distribution} {head.version}" for head in matches)
        raise UserError(
            f"head {name!r} is declared by two distributions: {owners}\n"
            f"Uninstall one of them, or choose by class path: {', '.join(head.class_path for head in matches)}"
        )
    return _import_installed(matches[0])


def load_every_head() -> list[LoadedHead]:
    """Load each installed head on its own; one that is broken comes with its reason and breaks no other."""
    results = []
    for installed in installed_heads():
        try:
            results.append(LoadedHead(installed, load_head(installed.name)))
        except UserError as error:
            results.append(LoadedHead(installed, None, str(error)))
    return results


def load_all() -> "dict[str, type[GenerationHead]]":
    """Load every installed head for the command line, and lets jsonargparse know the entry-point names.

    After this, a parameter of type `Callable[[int, int], GenerationHead]` takes `gmm`, `GMMHead` and
    `divot_heads.gmm.GMMHead` alike, and what is recorded is the last. A broken head gives a warning.

    Returns:
        The classes by entry-point name.
    """
    classes = {}
    for loaded in load_every_head():
        if loaded.head_class is None:
            warnings.warn(loaded.problem, stacklevel=2)
        else:
            classes[loaded.installed.name] = loaded.head_class
    for name, head_class in classes.items():
        _announce(name, head_class)
    return classes


def resolve_head_name(name: str) -> str:
    """Turn what a user may write for a head into its class path.

    Args:
        name: An entry-point name (`gmm`), a class name (`GMMHead`) or a class path (`divot_heads.gmm.GMMHead`).

    Returns:
        The class path.

    Raises:
        UserError: Nothing usable goes by that name; the message lists what is installed.
    """
    if "." in name:
        return head_class_path(import_head(name))
    installed = installed_heads()
    if any(head.name == name for head in installed):
        return head_class_path(load_head(name))
    by_class = {head.class_path: head for head in installed if head.class_path.rpartition(".")[2] == name}
    if len(by_class) > 1:
        raise UserError(f"head {name!r} is the class name of several heads; give one in full: {', '.join(by_class)}")
    if not by_class:
        raise UserError(_unknown_head(name))
    return head_class_path(_import_installed(next(iter(by_class.values()))))


def import_head(class_path: str) -> "type[GenerationHead]":
    """Import a head by its class path, installed or not.

    Args:
        class_path: Such as "divot_heads.gmm.GMMHead".

    Returns:
        The class.

    Raises:
        UserError: The path does not import or is not a GenerationHead.
    """
    module, _, attribute = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UserError(f"head {class_path!r} cannot be imported: {_reason(error)}") from error
    return _check_class(found, class_path)


def build_head(class_path: str, init_args: dict[str, Any], hidden_dim: int, feature_dim: int) -> "GenerationHead":
    """Build a head from what a component folder or a recipe records.

    Args:
        class_path: Dotted path of the class, or a short name.
        init_args: Settings of the head, as in its `init_args`.
        hidden_dim: D, width of the LLM's hidden states.
        feature_dim: C, width of the features.

    Returns:
        The head, freshly initialised.

    Raises:
        UserError: The class is not there or does not take these settings.
    """
    head_class = import_head(resolve_head_name(class_path))
    allowed = list(inspect.signature(head_class.__init__).parameters.values())[1:]
    names = [parameter.name for parameter in allowed]
    unknown = [name for name in init_args if name not in names]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in allowed):
        raise UserError(f"head {class_path!r} takes no setting {', '.join(unknown)}; it takes: {', '.join(names[2:])}")
    return head_class(hidden_dim, feature_dim, **init_args)


def head_class_path(head_class: "type[GenerationHead]") -> str:
    """Return the dotted path under which a head's class is recorded."""
    return f"{head_class.__module__}.{head_class.__qualname__}"


def _import_installed(installed: InstalledHead) -> "type[GenerationHead]":
    try:
        found = installed.entry_point.load()
    except Exception as error:
        raise UserError(
            f"head {installed.name!r} of distribution {installed.distribution} {installed.version} cannot be imported "
            f"from {installed.class_path}: {_reason(error)}\n"
            f"Mend or uninstall {installed.distribution}; the other heads work without it."
        ) from error
    return _check_class(found, installed.class_path)


def _check_class(found: object, class_path: str) -> "type[GenerationHead]":
    from divot_lightning.parts.heads import GenerationHead

    if not (isinstance(found, type) and issubclass(found, GenerationHead)):
        raise UserError(
            f"{class_path} is not a generation head: {found!r:.80}\n"
            "A head subclasses divot_lightning.parts.heads.GenerationHead."
        )
    return found


def _announce(name: str, head_class: "type[GenerationHead]") -> None:
    """Make jsonargparse find a head by its entry-point name (see `head_names`)."""
    known = {child.__name__ for child in head_class.__subclasses__() if child.__module__ == _ALIAS_MODULE}
    if name.isidentifier() and name != head_class.__name__ and name not in known:
        _ALIASES.append(type(name, (head_class,), {"__module__": _ALIAS_MODULE, "__doc__": head_class.__doc__}))


_ALIASES: "list[type[GenerationHead]]" = []  # a class without a reference vanishes from __subclasses__


def _unknown_head(name: str) -> str:
    names = sorted({head.name for head in installed_heads()})
    if not names:
        return f"head {name!r} is not installed, nor is any other; run `pip install -e .` in the checkout"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"head {name!r} is not installed; installed: {', '.join(names)}.{hint}"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
