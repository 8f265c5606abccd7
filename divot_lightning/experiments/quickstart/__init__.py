"""`divot quickstart`: the whole pipeline as restartable steps, each a process of its own."""
