"""Discovery: which Common Crawl dumps there are, and which one a schedule has not done yet."""
