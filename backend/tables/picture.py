"""The sizes that a picture can be drawn in, whoever asks: the page, a file of prompts, a command line."""

# Sides in pixels: a U-Net that halves three times has nothing left of smaller ones, and its VAE takes tens of gigabytes
# for the largest.
GRID, LEAST, MOST, MOST_PIXELS = 8, 64, 8192, 4096 * 4096
