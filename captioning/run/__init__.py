"""An archive's bookkeeping: its index, shards, staged parts, table and proof. Knows no model."""
