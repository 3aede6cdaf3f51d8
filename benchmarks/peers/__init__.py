"""Reference methods written from their papers, the common data, and the interface to ours."""
