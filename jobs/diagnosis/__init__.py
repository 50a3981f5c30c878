"""What `doctor` looks at: this machine, packages, storage, Ray, PyTorch and the captioner."""
