"""A rendered city and what is shown on it: the demonstration and the study."""
