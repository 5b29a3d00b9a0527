"""Arrays in, arrays out, on the Python array API standard; no models, no files, no frameworks."""
