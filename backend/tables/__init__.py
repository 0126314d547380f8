"""Plain data and functions: names, blocks, buckets. No torch."""
