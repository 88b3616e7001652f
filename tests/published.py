"""Published counts that tests hold code against."""

# DDR, official training and validation photographs of grades 0-4.
DDR_TRAINVAL_COUNTS = (4386, 441, 3133, 165, 638)
