"""What every pipeline can use: caching, tracking, the promotion gate, requests over HTTP, data files."""
