"""Where and how arms run: processes, files that survive a kill, what a result says of its making, trackers."""
