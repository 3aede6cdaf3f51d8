"""Train translators: losses, objectives, the training loop and its guards."""
