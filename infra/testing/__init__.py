"""What tests and benchmarks share: real servers as processes, the composed stack, stand-ins for outside services."""
