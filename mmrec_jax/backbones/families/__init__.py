"""One file a family of encoders. Each has a tuple `FAMILIES`; the registry finds them by themselves."""
