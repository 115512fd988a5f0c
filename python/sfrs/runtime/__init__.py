"""Foundations of every room: errors, atomic files, processes, threads, the terminal."""
