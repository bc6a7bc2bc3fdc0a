"""One artifact: manifest, export, parity, quantization, MLflow flavor, artifact store, cache, latency."""
