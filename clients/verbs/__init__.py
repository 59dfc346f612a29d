"""The commands of this room, as `videofer predict`, `saliency` and `networks` start them."""
