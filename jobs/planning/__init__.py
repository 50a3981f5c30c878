"""What `plan` does: a sample taken, captioned and timed, and a forecast made of it."""
