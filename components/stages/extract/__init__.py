"""extract: (image URL, alt text) candidates from Common Crawl's WAT or WARC files, deduplicated across a dump."""
