"""What a module is called in the files of each family."""
