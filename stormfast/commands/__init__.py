"""The commands of the stormfast program, one file each."""
