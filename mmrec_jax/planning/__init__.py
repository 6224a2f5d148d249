"""What a run will need and how long it will take on machines that are not here, told by their compilers."""
