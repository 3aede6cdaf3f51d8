"""Read the slice store on disk and build the batches that a training step sees."""
