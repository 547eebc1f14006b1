"""Speed and memory, measured and planned."""
