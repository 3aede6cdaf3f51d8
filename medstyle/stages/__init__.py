"""The pipeline's verbs; each module has Params and run()."""
