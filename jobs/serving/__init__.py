"""The HTTP endpoint and the page of `serve`: requests, batches, limits. Only `app` imports Ray."""
