"""Submits a verb of `jobs` to a Ray cluster over HTTP, and watches and stops it from anywhere.

    python -m cluster submit --address http://HEAD:8265 -- caption s3://bucket/photos -o s3://bucket/captions

`start.sh` and `start.py` run on the cluster; the other modules run on the submitting machine, without Ray.
"""
