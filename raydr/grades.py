"""The International Clinical Diabetic Retinopathy (ICDR) severity scale, and DDR's class proportions.

Wilkinson et al., Ophthalmology 110 (2003): 0 no apparent retinopathy, 1 mild, 2 moderate, 3 severe
non-proliferative, 4 proliferative.
"""

NUM_GRADES = 5
GRADES = tuple(range(NUM_GRADES))

NAMES = ("no DR", "mild", "moderate", "severe", "proliferative")

# The stage words of the paper's prompts (Zhang et al., MICCAI 2025).
STAGES = ("normal", "mild DR", "moderate DR", "severe DR", "proliferative DR")

# Official DDR test split: what "accuracy at DDR priors" weighs the recalls with.
DDR_TEST_COUNTS = (1880, 189, 1344, 71, 275)
EYEPACS_COUNTS = (25810, 2443, 5292, 873, 708)
APTOS_COUNTS = (1805, 370, 999, 193, 295)
