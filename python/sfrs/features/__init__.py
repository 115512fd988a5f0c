"""Frozen features: the output of a backbone's frozen part, computed once or on the fly."""
