"""Images from wherever they are to uint8 arrays: readers, decoding, the cache, what is in a set."""
