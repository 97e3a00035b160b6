"""Numbers about the running server: ring buffers with percentiles, callbacks, Prometheus."""
