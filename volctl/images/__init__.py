"""Images: is it safe, what is it, and the copy of its content into a volume."""
