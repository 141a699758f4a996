"""The measures by which layers are compared, by name; imports nothing, so that a page or a parser may ask."""

MEASURES = CKA, R_SQUARED, NEIGHBOURS = ("CKA", "R²", "k-NN overlap")
