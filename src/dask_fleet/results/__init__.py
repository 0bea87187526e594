"""Where the bytes of large results live: files by digest, memory for tests."""
