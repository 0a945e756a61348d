"""Learning: codebooks, batch-norm statistics and errors, layer by layer, on calibration inputs."""
