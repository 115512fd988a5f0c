"""Training in generations: configuration, losses, mining, the step, the epoch, the run and its folder."""
