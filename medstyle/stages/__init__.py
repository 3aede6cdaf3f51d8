"""The stages of the pipeline; each module has Params and run()."""
