"""What every room stands on: errors, atomic files, processes, threads, the terminal."""
