"""Names of modules in the files of each family."""
