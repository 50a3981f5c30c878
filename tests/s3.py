"""A local S3 server for tests, by moto."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

from captioning.storage import StorageSettings


@contextmanager
def s3_server(bucket: str) -> Iterator[StorageSettings]:
    """A server with an empty `bucket`; this process and its children have the credentials while it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        for name in [*os.environ]:
            if name.lower().endswith("_proxy") or name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
                patch.delenv(name)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            endpoint = f"http://{host}:{port}"
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
            # All moto servers of a process share their content.
            boto3.resource("s3", endpoint_url=endpoint).Bucket(bucket).objects.delete()
            yield StorageSettings(endpoint=endpoint)
        finally:
            server.stop()
