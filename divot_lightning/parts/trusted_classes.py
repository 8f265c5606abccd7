"""Which classes the files of a run may name. No torch.

Component folders are passed on between people, and importing a module runs it. So the class that a folder names is
compared with what is installed here before anything is imported; the folder itself, and the one that the command is
started in, are no places to import from.
"""

import os
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.parts import kinds, registry

OWN_PACKAGES = ("divot_lightning", "divot_heads", "divot_datamodules")

VARIABLE = "DIVOT_TRUSTED_PACKAGES"
"""Names packages of the user's own, separated by commas, whose classes folders may name too."""


def require_trusted(class_path: str, where: str | Path) -> None:
    """Refuse a class that is neither ours, nor an installed part, nor of a package that the user trusts.

    Args:
        class_path: As the file names it, such as `divot_heads.gmm.GMMHead`; nothing of it is imported.
        where: The file, for the message.

    Raises:
        UserError: The class is refused; the message says how to allow it.
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
    """Return whether an entry point leads to the class; only those of the same package are loaded to find out."""
    package = class_path.partition(".")[0]
    declared = [
        (parts, part)
        for parts in kinds.REGISTRIES.values()
        for part in parts.installed()
        if part.class_path.partition(".")[0] == package
    ]
    if any(part.class_path == class_path for _, part in declared):
        return True
    # A package may declare a part under another name than that of the module which holds it.
    return any(registry.class_path(parts.load(part.name)) == class_path for parts, part in declared)
