"""Would choose torch's allocator."""
