"""Small trained vision networks that run, still compressed, on a CPU."""
