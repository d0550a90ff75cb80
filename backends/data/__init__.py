"""Data sets as uint8 arrays: readers of all formats, decoding, the cache, and inspection."""
