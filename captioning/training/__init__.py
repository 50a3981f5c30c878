"""Training a captioner, one process or many. Knows torch.distributed, never Ray."""
