"""The built-in optimizers; they are found through entry points, as a package of your own is."""
