"""Data sets that come with the package, and the script that builds them."""
