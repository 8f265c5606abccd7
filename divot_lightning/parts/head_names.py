"""The installed heads under their entry-point names: `divot_lightning.parts.head_names.gmm` is the class of head 'gmm'.

jsonargparse finds a class by its short name among the subclasses of the expected type and then imports the path it
found. `registry.load_all` puts one subclass per entry point here for it to find; the import gives the real class,
so that a recorded configuration, a saved head and an instance know only the real one.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from divot_lightning.parts.registry import installed_heads, load_head

    if name.startswith("__") or name not in {head.name for head in installed_heads()}:
        raise AttributeError(f"no head is installed under the name {name!r}")
    return load_head(name)
