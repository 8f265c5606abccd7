"""The toy world: clips of moving shapes with texts, made here, whose content is known exactly."""
