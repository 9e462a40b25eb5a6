"""What a run keeps in its dump folder and its checkpoints, and reading it before a launch."""
