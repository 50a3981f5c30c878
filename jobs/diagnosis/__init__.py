"""The checks of `doctor`: this machine, packages, storage, Ray, PyTorch and the captioner."""
