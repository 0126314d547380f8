"""Pictures and captions: scanned, sorted into buckets, dealt into batches, loaded and cached."""
