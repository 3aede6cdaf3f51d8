"""What a scan is and how it gets in and out of the program."""
