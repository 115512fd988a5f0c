"""Speed and memory of the operators beside their peers, behind a correctness gate."""
