"""What `make benchmark` runs. Nothing in here belongs to the program that is run."""
