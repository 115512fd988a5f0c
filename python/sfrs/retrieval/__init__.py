"""Retrieval: search, recall, re-ranking by regions, locating photographs, the index."""
