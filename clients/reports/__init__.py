"""An Analysis as people want to see it: text, tables, pictures, a video, a page."""
