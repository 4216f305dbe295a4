"""One operation per file; see looplm_kernels.py, the public face."""
