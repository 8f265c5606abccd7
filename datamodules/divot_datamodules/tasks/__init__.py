"""Tasks: from a sample's texts and clips to segments."""
