"""The endpoint and the page of `serve`: requests, batches, bounds. Only `app` imports Ray."""
