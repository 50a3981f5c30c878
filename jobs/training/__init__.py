"""What `train` does around Ray Train: workers placed, started, lost and started again, their progress and page."""
