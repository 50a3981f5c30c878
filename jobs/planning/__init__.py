"""The work of `plan`: samples an archive, captions and times the sample, and forecasts the rest."""
