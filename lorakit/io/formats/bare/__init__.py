"""Single files whose keys begin with nothing but the name of a layer."""
