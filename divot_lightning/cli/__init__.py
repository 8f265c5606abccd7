"""The `divot` command line, one file per subcommand."""
