"""Models as signed files: what a publisher makes, what a user installs; no server is needed."""
