"""Measuring how far sets of images are from each other."""
