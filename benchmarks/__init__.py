"""Speed and memory of the operators and their peers, after a correctness gate."""
