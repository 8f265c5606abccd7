"""Write results as one self-contained HTML file."""
