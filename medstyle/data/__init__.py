"""From the slice store on disk to the batch that a training step sees."""
