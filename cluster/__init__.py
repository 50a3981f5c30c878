"""Where jobs run: a verb of `jobs` submitted to a Ray cluster over HTTP, watched and stopped from anywhere.

    python -m cluster submit --address http://HEAD:8265 -- caption s3://bucket/photos -o s3://bucket/captions

`start.sh` and `start.py` run on the cluster; the other modules on the machine of whoever submits, without Ray.
"""
