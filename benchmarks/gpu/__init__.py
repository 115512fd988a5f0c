"""Speed and memory of the operators on a GPU, beside their peers and the device's own ceilings."""
