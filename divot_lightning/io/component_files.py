"""Names of the files in a component folder.

The weights are in `model.safetensors`, or in several files with an index, as transformers writes them. An exported
component keeps those of some modules in sub-folders, in the format of their own library: `config.json` names them under
`parts`, as `{"language_model": "language_model"}` (module path: sub-folder).
"""

import json
from pathlib import Path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PARTS_KEY = "parts"


def read_parts(folder: Path) -> dict[str, str]:
    """Return the sub-folders of a component that hold weights, by module path; empty without a readable config."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get(PARTS_KEY, {})
    except (OSError, ValueError):
        return {}
    # No path that leaves the folder.
    return {str(module): Path(str(part)).name for module, part in found.items()}
