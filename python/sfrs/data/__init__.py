"""Data sets: places, images, coordinates."""
