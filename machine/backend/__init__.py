"""What became of each task: states, values, groups."""
