"""What a training run is: recipe and command line in, a trainer at work, its run folder out."""
