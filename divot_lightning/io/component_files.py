"""Names of the files in a component folder."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
