"""Decide which classes the files of a run may name. No torch in here.

People pass component folders on, and importing a module runs its code. So a class that a folder names is checked
against the installed packages before anything is imported. Nothing is imported from the component folder itself or
from the working directory.
"""

import os
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.parts.registries import kinds, registry

OWN_PACKAGES = ("divot_lightning", "divot_heads", "divot_backbones", "divot_optimizers", "divot_datamodules")

VARIABLE = "DIVOT_TRUSTED_PACKAGES"
"""Environment variable: further packages whose classes folders may name, separated by commas."""


def require_trusted(class_path: str, where: str | Path) -> None:
    """Refuse a class unless it is ours, an installed part, or of a package that the user trusts.

    Args:
        class_path: Class path in the file, such as `divot_heads.gmm.GMMHead`; it is not imported.
        where: The file, for the message.

    Raises:
        UserError: The class is not allowed; the message explains how to allow it.
    """
    package = class_path.partition(".")[0]
    if package in (*OWN_PACKAGES, *trusted_packages()) or _is_installed_part(class_path):
        return
    raise UserError(
        f"{where} names the class {class_path!r}, which is not imported, since that would run its code\n"
        f"allowed: classes of divot-lightning and parts that installed packages declare as divot_lightning.KIND\n"
        f"if you wrote it, or trust who did, set {VARIABLE}={package or 'PACKAGE'} in the environment"
    )


def trusted_packages() -> list[str]:
    """Return the packages that the user named in `DIVOT_TRUSTED_PACKAGES`."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def _is_installed_part(class_path: str) -> bool:
    """Return whether the class is an installed part; at most parts of the same package are imported to find out."""
    package = class_path.partition(".")[0]
    declared = [
        (parts, part)
        for parts in kinds.REGISTRIES.values()
        for part in parts.installed()
        if part.class_path.partition(".")[0] == package
    ]
    if any(part.class_path == class_path for _, part in declared):
        return True
    # An entry point may name a module that only re-exports the class.
    return any(_is_class_of(parts, part, class_path) for parts, part in declared)


def _is_class_of(parts: registry.Registry[Any], part: registry.InstalledPart, class_path: str) -> bool:
    try:
        return registry.class_path(parts.load(part.name)) == class_path
    except UserError:
        return False  # another part of the package is broken, which says nothing about this class
