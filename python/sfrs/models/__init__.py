"""Networks from image to descriptor: backbones, clusters, whitening, weights of other projects."""
