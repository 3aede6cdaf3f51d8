"""Who is who among the images that came in, and which of them can be used."""
