"""The ops of structures as the runtime runs them. Each has a slow reference and fast forms for CPU and CUDA."""
