"""Colours of all pictures."""

# Distinguishable with any kind of colour vision (after Okabe and Ito), and dark enough for text on white.
COLOURS = ("#0072B2", "#C44E00", "#00805E", "#A64D8C", "#8A6500")
MARKS = ("o", "s", "^", "D", "v")
BASELINE, OTHERS = "#444444", "#B8B8B8"
BETTER, WORSE, UNCLEAR = "#0072B2", "#C44E00", "#8A8A8A"
