"""Training a captioner in one or several processes, with torch.distributed and without Ray."""
