"""What a person asks for: files in, files out, a report beside them."""
