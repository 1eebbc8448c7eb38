"""The embedded model: a Wan network of toy size with its own VAE, vocabulary and training."""
