"""The parts of training that are the same in every backend: the plan of a step, its images, the files of a run."""
