"""What training does in every backend: the plan of a step, its images, what a run leaves behind."""
